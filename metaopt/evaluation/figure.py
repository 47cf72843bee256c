"""The convergence figure of an evaluation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaopt.evaluation.contenders import Contender, captions

Array = NDArray[np.float64]

DIVERGED = 10.0
"""Losses above this many times the first are out of the picture."""


def convergence_figure(
    curves: Mapping[str, Mapping[str, Array]], contenders: Sequence[Contender], title: str
) -> bytes:
    """Loss by wall-clock time and by inner step, as a PNG.

    Geometric means on a logarithmic axis, bands for the 95 % intervals, and each curve labelled at
    its end, with where it comes from. A user's own learned optimizers are drawn thickest, shipped
    ones thick, hand-made ones thin and dashed. What diverges leaves the picture at its top.

    Args:
        curves: by name, ``geomean``, ``low``, ``high`` by inner step, and ``seconds``.
        contenders: the optimizers, in the order of the curves.
        title: the title of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_time, by_step) = pyplot.subplots(1, 2, figsize=(13, 6), sharey=True)
    colours = [*matplotlib.color_sequences["tab10"], *matplotlib.color_sequences["Dark2"]]
    ends: list[tuple[float, str, Any]] = []
    for i, (contender, caption) in enumerate(zip(contenders, captions(contenders), strict=True)):
        colour, curve = colours[i % len(colours)], curves[contender.name]
        style = _style(contender)
        steps = np.arange(len(curve["geomean"]))
        by_step.plot(steps, curve["geomean"], color=colour, **style)
        by_step.fill_between(
            steps, curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0
        )
        by_time.plot(1e3 * curve["seconds"][1:], curve["geomean"][1:], color=colour, **style)
        ends.append((float(curve["geomean"][-1]), caption, colour))
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
    by_time.set_ylabel("loss, geometric mean over tasks")
    highest = DIVERGED * max(float(curve["geomean"][0]) for curve in curves.values())
    by_step.set_ylim(top=min(by_step.get_ylim()[1], highest))
    figure.suptitle(title)
    figure.tight_layout()
    _label_ends(by_step, ends)
    buffer = io.BytesIO()
    # As wide as the names are long.
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return buffer.getvalue()


def _style(contender: Contender) -> dict[str, Any]:
    """How a curve is drawn."""
    if contender.kind != "learned":
        return {"linewidth": 1.2, "linestyle": "--"}
    return {"linewidth": 3.0 if contender.is_own else 2.0}


def _label_ends(axis: Any, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Names at the right end of the curves, moved apart where they would overlap."""
    last_x = max(line.get_xdata()[-1] for line in axis.get_lines())
    low, high = axis.get_ylim()
    height = (np.log10(high) - np.log10(low)) / 28
    place = -np.inf
    for loss, name, colour in sorted(ends, key=lambda end: end[0]):
        place = max(np.log10(min(max(loss, low), high)), place + height)
        axis.annotate(
            name,
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
    axis.set_xlim(left=-0.02 * last_x, right=last_x)
