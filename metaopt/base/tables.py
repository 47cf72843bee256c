"""Tables in Markdown that are also aligned on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TABLE_STEPS = (0, 1, 5, 10, 20, 50, 100)
"""The inner steps that tables show, besides the last one."""


def table_steps(last: int) -> list[int]:
    """The inner steps that a table shows if the last one is ``last``."""
    return sorted({step for step in TABLE_STEPS if step < last} | {last})


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are also aligned on a terminal."""
    header, *rows = ([cell.replace("|", r"\|") for cell in row] for row in (header, *rows))
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def validation_table(curve: Sequence[float]) -> str:
    """A table of the validation loss (geometric mean over tasks) at a few inner steps.

    Args:
        curve: the loss after each inner step, from step 0.
    """
    steps = table_steps(len(curve) - 1)
    return markdown_table(
        ["inner step", *map(str, steps)],
        [["validation loss", *(f"{curve[step]:.3g}" for step in steps)]],
    )


def printable(value: Any) -> str:
    """The value as one line of text; control characters, which files may contain, are replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
