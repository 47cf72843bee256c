"""What people look at: tables on the terminal, the convergence figure, TensorBoard."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from metaopt.tables import TABLE_STEPS as TABLE_STEPS
from metaopt.tables import markdown_table as markdown_table
from metaopt.tables import table_steps as table_steps
from metaopt.tables import validation_table as validation_table

Array = NDArray[np.float64]

EPOCH = 1_700_000_000.0
"""Wall-clock time at which all overlaid curves begin."""


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


class RunWriter:
    """TensorBoard events of a meta-training run.

    Args:
        folder: of the run.
        purge_step: events from this outer step on, of a part that was killed, are hidden.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)

    @staticmethod
    def files(folder: Path) -> list[Path]:
        """The event files of a run."""
        return sorted(folder.glob("events.out.tfevents.*"))

    def outer_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of one outer step."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def validation(
        self, step: int, curve: Sequence[float], final: Array, teleports: Mapping[str, Array]
    ) -> None:
        """The validation curve at a few inner steps, and histograms.

        Args:
            step: outer step.
            curve: geometric-mean loss by inner step.
            final: losses of all tasks at the last inner step.
            teleports: arrays [steps, tasks] by name, to be seen as histograms.
        """
        for inner in table_steps(len(curve) - 1):
            self._writer.add_scalar(f"validation/loss_at_{inner:04d}", curve[inner], step)
        arrays = {"log10_final_loss": np.log10(final)}
        arrays |= {f"teleport_{name}": values for name, values in teleports.items()}
        for name, values in arrays.items():
            finite = values[np.isfinite(values)]
            if finite.size:
                self._writer.add_histogram(f"validation/{name}", finite, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def overlay_runs(folder: Path, curves: Mapping[str, Mapping[str, Array]]) -> None:
    """One TensorBoard run for each optimizer, so that their curves lie over each other.

    Args:
        folder: each optimizer gets a folder below it; events of an earlier evaluation go.
        curves: for each optimizer ``geomean``, ``low``, ``high`` by inner step, and ``seconds``.
    """
    for run in folder.glob("*"):
        for old in RunWriter.files(run):
            old.unlink()
    for name, curve in curves.items():
        writer = SummaryWriter(str(folder / re.sub(r"[^\w(),@#+ -]", "_", name)))
        for step, loss in enumerate(curve["geomean"]):
            # log10, since TensorBoard's axes are linear until told otherwise.
            # All runs begin at one wall-clock time: TensorBoard's axis "relative" shows seconds.
            wall_time = EPOCH + curve["seconds"][step]
            writer.add_scalar("loss/geomean", loss, step, wall_time)
            writer.add_scalar("loss/log10_geomean", np.log10(loss), step, wall_time)
        writer.close()


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


def convergence_figure(
    curves: Mapping[str, Mapping[str, Array]], learned: Sequence[str], title: str
) -> bytes:
    """Loss by inner step and by wall-clock time, as a PNG.

    Geometric means on a logarithmic axis, bands for the 95 % intervals, and each curve labelled at
    its end. Learned optimizers are drawn thick, hand-made ones thin and dashed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_step, by_time) = pyplot.subplots(1, 2, figsize=(13, 6), sharey=True)
    colours = [*matplotlib.color_sequences["tab10"], *matplotlib.color_sequences["Dark2"]]
    ends: list[tuple[float, str, Any]] = []
    for i, (name, curve) in enumerate(curves.items()):
        colour = colours[i % len(colours)]
        style: dict[str, Any] = (
            {"linewidth": 2.2} if name in learned else {"linewidth": 1.2, "linestyle": "--"}
        )
        steps = np.arange(len(curve["geomean"]))
        by_step.plot(steps, curve["geomean"], color=colour, **style)
        by_step.fill_between(
            steps, curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0
        )
        by_time.plot(1e3 * curve["seconds"][1:], curve["geomean"][1:], color=colour, **style)
        ends.append((float(curve["geomean"][-1]), name, colour))
    for axis, label in (
        (by_step, "inner step (one gradient evaluation each)"),
        (by_time, "wall-clock time of all tasks in one batch (ms)"),
    ):
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    by_time.set_xscale("log")
    by_step.set_ylabel("loss, geometric mean over tasks")
    figure.suptitle(title)
    figure.tight_layout()
    _label_ends(by_step, ends)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    return buffer.getvalue()


def _label_ends(axis: Any, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Names at the right end of the curves, moved apart where they would overlap."""
    last_x = max(line.get_xdata()[-1] for line in axis.get_lines())
    low, high = axis.get_ylim()
    height = (np.log10(high) - np.log10(low)) / 28
    place = -np.inf
    for loss, name, colour in sorted(ends, key=lambda end: end[0]):
        place = max(np.log10(max(loss, low)), place + height)
        axis.annotate(
            name,
            xy=(last_x, 10.0 ** min(place, 300.0)),
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
    # Room for the names, but no numbers where there are no steps.
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= last_x])
    axis.set_xlim(left=-0.02 * last_x, right=last_x * 1.5)
