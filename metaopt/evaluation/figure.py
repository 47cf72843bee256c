"""The convergence figure of an evaluation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LONGEST_NAME = 60
"""Letters of a name beside its curve."""


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
            name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…",
            xy=(last_x, 10.0 ** min(place, 300.0)),
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
            # A name is text, also with dollars in it.
            parse_math=False,
        )
    # Room for the names, but no numbers where there are no steps.
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= last_x])
    axis.set_xlim(left=-0.02 * last_x, right=last_x * 1.5)
