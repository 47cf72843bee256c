"""Small transformers that no meta-training saw: the pair for attention, its controls, and AdamW.

    python -m studies.attention [--smoke] [--jobs N] [--out DIR] [--json FILE] [--write-page]

Tasks are those of ``metaopt.tasks.attention`` at a width and a number of heads of their own, on
images that are kept apart. The pair ``attention_update_tele`` stands beside its updates alone, with
heads that stay in the basis that they were made in; beside itself without knowing any pairs, so
that all sides have eigenbases of their own; beside ``attention_update``; and beside AdamW with a
cosine that is told the column, whose rate is the best of its grid for the column on these very
tasks. What the folder (``runs/attention`` by default) already has is not run again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaopt.base import cli
from metaopt.base.files import make_folder
from metaopt.base.loss_statistics import Array, clean, geomean, ratio_of, resamples
from metaopt.base.process import World
from metaopt.base.streams import Stream
from metaopt.base.tables import markdown_table
from metaopt.meta.unroll import rollout
from metaopt.optim.learned import load
from metaopt.optim.memory import identity
from metaopt.rules.base import Proposal, State
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.hand_made import CosineAdamW
from metaopt.tasks.attention import Attention
from metaopt.tasks.base import Observation, Tasks
from metaopt.tasks.own_batch import LossFamily
from studies import pool
from studies.lora.contenders import UNKNOWN, off
from studies.output import DOCS, ROOT, Page
from studies.pieces import digest, folder, side_by_side

PAGE = Page(DOCS / "attention.md", "attention table", "attention")
PAIR, UPDATE = "attention_update_tele", "attention_update"
ADAMW = "AdamW, cosine"
FAMILY = "metaopt.tasks.attention:Attention"
OPTIONS: dict[str, Any] = {"width": 32, "heads": 4, "unseen": True, "judged": 200}
SEED = 20
BETA1, DECAY = 0.9, 0.01
"""Those of torch's AdamW."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Size:
    """Of the study."""

    marks: tuple[int, ...]
    tasks: int
    rates: tuple[float, ...]  # of AdamW


FULL = Size((20, 100, 400, 1000), 32, (3e-3, 1e-2, 3e-2, 1e-1))
SMOKE = Size((1, 2), 2, (1e-3, 1e-2))


@dataclass(frozen=True)
class Piece:
    """A row, run to ``steps``; ``rate`` is 1 for learned rules."""

    row: str
    rate: float
    steps: int


@dataclass(frozen=True)
class Whole:
    """All that the pieces depend on."""

    size: Size
    options: dict[str, Any]
    rules: dict[str, str]


class Unknowing(MetaOptimizer):
    """The rules, shown no linear pairs."""

    def propose(
        self, observation: Observation, states: dict[str, State]
    ) -> tuple[Proposal, dict[str, State]]:
        """See ``MetaOptimizer.propose``."""
        return super().propose(replace(observation, pairs=None), states)

    def initial_rule_states(self, observation: Observation) -> dict[str, State]:
        """See ``MetaOptimizer.initial_rule_states``."""
        return super().initial_rule_states(replace(observation, pairs=None))


def optimizer_of(piece: Piece) -> MetaOptimizer:
    """What takes the steps of a piece."""
    if piece.row == ADAMW:
        return MetaOptimizer({"update": CosineAdamW(piece.rate, BETA1, DECAY, piece.steps)}, None)
    whole = load(piece.row.removesuffix(off("")).removesuffix(UNKNOWN)).optimizer
    if piece.row in (PAIR, UPDATE):
        return whole
    kind = Unknowing if piece.row.endswith(UNKNOWN) else MetaOptimizer
    return kind({"update": whole.rules["update"]}, None)


def tasks_of(size: Size) -> Tasks:
    """The test tasks, batched."""
    family = LossFamily(Attention(**OPTIONS), FAMILY)
    return family.sample(Stream.TEST, SEED, 0, size.tasks, torch.float32)


def run(piece: Piece, size: Size, kept: Any) -> list[list[float]]:
    """Losses at the marks, [marks, tasks]; of AdamW at the last step alone."""

    def compute() -> dict[str, Any]:
        torch.set_num_threads(1)
        losses: Tensor = rollout(tasks_of(size), optimizer_of(piece), piece.steps)[0]
        marks = [piece.steps] if piece.row == ADAMW else list(size.marks)
        return {"losses": losses[marks].double().tolist()}

    return kept.kept(digest(piece), compute)["losses"]


LEARNED = (PAIR, off(PAIR), f"{PAIR}{UNKNOWN}", UPDATE)


def pieces(size: Size) -> list[Piece]:
    """The longest first."""
    learned = [Piece(row, 1.0, size.marks[-1]) for row in LEARNED]
    tuned = [Piece(ADAMW, rate, mark) for mark in reversed(size.marks) for rate in size.rates]
    return learned + tuned


def rows_of(
    found: dict[Piece, list[list[float]]], size: Size
) -> dict[str, tuple[Array, list[str]]]:
    """Losses [marks, tasks] of each row, and what stands behind each figure."""
    rows = {}
    for row in LEARNED:
        losses = clean(np.array(found[Piece(row, 1.0, size.marks[-1])]))
        rows[row] = (losses, [""] * len(size.marks))
    best, told = [], []
    for mark in size.marks:
        by_rate = {rate: clean(np.array(found[Piece(ADAMW, rate, mark)]))[0] for rate in size.rates}
        rate = min(by_rate, key=lambda one: float(geomean(by_rate[one])))
        best.append(by_rate[rate])
        edge = " *" if rate in (size.rates[0], size.rates[-1]) else ""
        told.append(f" ({rate:g}{edge})")
    rows[f"{ADAMW} told the column"] = (np.stack(best), told)
    return rows


def text(rows: dict[str, tuple[Array, list[str]]], size: Size) -> str:
    """The two tables."""
    shown: list[Sequence[str]] = [
        [row, *(f"{loss:.3g}{after}" for loss, after in zip(geomean(losses), told, strict=True))]
        for row, (losses, told) in rows.items()
    ]
    index = resamples(size.tasks, RESAMPLES, seed=0)
    ratios = []
    for row, (losses, _) in rows.items():
        if row != PAIR:
            mean, low, high, _ = ratio_of(rows[PAIR][0], losses, index)
            cells = [
                f"{m:.3g} ({a:.3g} to {b:.3g})" for m, a, b in zip(mean, low, high, strict=True)
            ]
            ratios.append([row, *cells])
    marks = [str(mark) for mark in size.marks]
    return (
        f"Loss on held-out images, geometric mean over {size.tasks} tasks; in brackets AdamW's "
        f"rate (* at an edge of its grid).\n\n{markdown_table(['', *marks], shown)}\n\n"
        f"Ratios with paired 95 % intervals over tasks:\n\n"
        f"{markdown_table([f'{PAIR} to', *marks], ratios)}"
    )


def main(world: World) -> None:
    """Run, print, write the page."""
    parser = argparse.ArgumentParser(description="Attention: the pair, its controls and AdamW.")
    parser.add_argument("--smoke", action="store_true", help="few steps, two tasks")
    parser.add_argument("--jobs", type=cli.positive, default=os.cpu_count(), metavar="N")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/attention")
    arguments = PAGE.parse(parser)
    size = SMOKE if arguments.smoke else FULL
    out = arguments.out or ROOT / "runs" / "attention"
    make_folder(out)
    rules = {
        name: str(identity(rule, rule.optimizer))
        for name in (PAIR, UPDATE)
        for rule in [load(name)]
    }
    kept = folder(out, "attention", Whole(size, OPTIONS, rules))
    with pool.alone(out):
        found = side_by_side(
            partial(run, size=size, kept=kept), pieces(size), arguments.jobs, "runs"
        )
    rows = rows_of(found, size)
    figures = {
        row: {"losses": losses.tolist(), "rates": told} for row, (losses, told) in rows.items()
    }
    PAGE.tell(arguments, text(rows, size), {"marks": size.marks, "rows": figures})


if __name__ == "__main__":
    cli.run(main)
