"""Tables on the terminal, and curves as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TABLE_STEPS = (0, 1, 5, 10, 20, 50, 100)
"""Inner steps that tables show, with the last one."""


def table_steps(last: int) -> list[int]:
    """The inner steps that a table of ``last`` steps shows."""
    return sorted({step for step in TABLE_STEPS if step < last} | {last})


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned on the terminal too."""
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
    """Geometric-mean validation loss at a few inner steps."""
    steps = table_steps(len(curve) - 1)
    return markdown_table(
        ["inner step", *map(str, steps)],
        [["validation loss", *(f"{curve[step]:.3g}" for step in steps)]],
    )


def results_table(found: dict[str, Any]) -> str:
    """The table of ``results.json`` that is printed, best at the last step first."""
    steps = table_steps(found["steps"])
    header = ["optimizer", *map(str, steps), "diverged", "ms/step"]
    ranked = sorted(found["optimizers"].items(), key=lambda item: item[1]["loss_geomean"][-1])
    rows = [
        [
            name,
            *(f"{entry['loss_geomean'][step]:.3g}" for step in steps),
            str(entry["diverged"]),
            f"{1e3 * entry['seconds_per_step']:.2g}",
        ]
        for name, entry in ranked
    ]
    return markdown_table(header, rows)


def teleport_table(found: dict[str, Any]) -> str:
    """Norms, refusals and drift of those optimizers that teleport; empty if none does."""
    rows = [
        [
            name,
            f"{entry['teleport']['norm_mean']:.3g}",
            f"{100 * entry['teleport']['refused_share']:.2g} %",
            f"{entry['teleport']['drift_max']:.2g}",
            f"{entry['teleport']['drift_log_total_mean']:.2g}",
        ]
        for name, entry in found["optimizers"].items()
        if entry["teleport"] is not None
    ]
    header = ["teleports of", "mean norm", "refused", "largest drift", "signed log total"]
    return markdown_table(header, rows) if rows else ""


def tuning_lines(found: dict[str, Any]) -> str:
    """What the hand-made optimizers were tuned to, a line each; empty without any."""
    lines = []
    for name, entry in found["optimizers"].items():
        if entry["kind"] != "learned" and entry["origin"]["hyperparameters"]:
            values = ", ".join(f"{k} {v:g}" for k, v in entry["origin"]["hyperparameters"].items())
            edges = ", ".join(entry["origin"]["at_the_edge_of_the_grid"])
            note = f"; at the edge of the grid: {edges}" if edges else ""
            lines.append(f"tuned {name}: {values} (step {entry['origin']['tuned_for_step']}){note}")
    return "\n".join(lines)


def curves_csv(curves: Mapping[str, Mapping[str, Array]]) -> bytes:
    """All curves as CSV, one row for each optimizer and inner step."""
    buffer = io.StringIO()
    columns = ("seconds", "mean", "geomean", "low", "high", "q05", "q95")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["optimizer", "step", *columns])
    for name, curve in curves.items():
        for step in range(len(curve["geomean"])):
            writer.writerow([name, step, *(f"{curve[column][step]:.6g}" for column in columns)])
    return buffer.getvalue().encode()
