"""The table of the study, and its bar, in text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from metaopt.base.loss_statistics import ratio_of, resamples
from metaopt.base.tables import markdown_table
from studies.minilm.contenders import named
from studies.minilm.frozen import Frozen
from studies.minilm.plan import Cell, Row, Size

RESAMPLES = 2000


def table(rows: Sequence[Row], size: Size) -> str:
    """Losses with the rate of each, where one was chosen, and how fast each was."""
    header = ["optimizer", *map(str, size.marks), "steps a second"]
    lines = []
    for label, cells in rows:
        found = [f"{cell.mean:.4f}" + _of(cell) for cell in cells]
        lines.append([label, *found, f"{1 / cells[-1].seconds_per_step:.1f}"])
    return markdown_table(header, lines)


def _of(cell: Cell) -> str:
    rates = named(cell.name).rates
    if len(rates) == 1:
        return ""
    return f" ({cell.rate:g}{' *' if cell.rate in (rates[0], rates[-1]) else ''})"


def ratios(rows: Sequence[Row], rules: Sequence[str]) -> Iterator[str]:
    """Each learned rule against all other rows at each mark, with the interval over seeds."""
    of = dict(rows)
    for rule in dict.fromkeys(rules):
        for label, cells in of.items():
            if label == rule:
                continue
            found = [_ratio(ours, theirs) for ours, theirs in zip(of[rule], cells, strict=True)]
            yield f"- `{rule}` against {label}: {', '.join(found)}"


def _ratio(ours: Cell, theirs: Cell) -> str:
    index = resamples(len(ours.losses), RESAMPLES, seed=0)
    mean, low, high, _ = ratio_of(np.array(ours.losses), np.array(theirs.losses), index)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}] at {ours.mark}"


def verdict(rows: Sequence[Row], size: Size, rule: str) -> str:
    """Whether a rule is below AdamW with a cosine over all steps at half of them, and at the end.

    Args:
        rows: of the plan.
        size: of the study.
        rule: its name.
    """
    of = dict(rows)
    pairs = zip(of[rule][1:], of[cosine_over(size)][1:], strict=True)
    missed = [str(ours.mark) for ours, theirs in pairs if not ours.mean < theirs.mean]
    said = f"not met at {' and '.join(missed)}" if missed else "met"
    return (
        f"`{rule}` below {cosine_over(size)}, tuned for each of both columns, at {size.marks[1]} "
        f"and {size.marks[2]}: {said}"
    )


def cosine_over(size: Size) -> str:
    """What the row of AdamW with a cosine over all steps is called."""
    return f"AdamW, cosine over {size.steps}"


def text(rows: Sequence[Row], size: Size, rules: Sequence[str], head: Frozen) -> str:
    """All of it.

    Args:
        rows: of the plan.
        size: of the study.
        rules: names; the verdict is on the first.
        head: what a head does alone.
    """
    parts = [
        f"Loss on held-out words after so many steps, geometric means over {size.seeds} seeds; in "
        f"brackets the rate, the best one of the column on validation words (* the smallest or the "
        f"largest that was tried).",
        table(rows, size),
        f"The best linear head on the frozen network, in closed form: {head.test:.4f}.",
        "Ratios of losses, with 95 % intervals over seeds:\n\n" + "\n".join(ratios(rows, rules)),
        verdict(rows, size, rules[0]),
    ]
    return "\n\n".join(parts)
