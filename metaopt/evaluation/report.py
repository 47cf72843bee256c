"""Tables on the terminal, and curves as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaopt.base.tables import markdown_table, printable, table_steps
from metaopt.evaluation.contenders import FROM

Array = NDArray[np.float64]


def results_table(found: dict[str, Any]) -> str:
    """The table of ``results.json`` that is printed, best at the last step first.

    Its last column says where an optimizer comes from: a learned one is ``shipped`` or from a place
    of the user's such as ``runs/NAME``, a hand-made one is a ``baseline`` or a ``reference``.
    """
    steps = table_steps(found["steps"])
    header = ["optimizer", *map(str, steps), "diverged", "ms/step", "from"]
    ranked = sorted(found["optimizers"].items(), key=lambda item: item[1]["loss_geomean"][-1])
    rows = [
        [
            name,
            *(f"{entry['loss_geomean'][step]:.3g}" for step in steps),
            str(entry["diverged"]),
            f"{1e3 * entry['seconds_per_step']:.2g}",
            printable(entry["origin"].get(FROM, entry["kind"])),
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
