"""The figure of an orbit: one panel for each quantity, over one axis of t."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from torch import Tensor

from metaopt.base.files import write_atomically

COLUMNS = 4
FORMATS = ("png", "pdf", "svg")
LOGARITHMIC = 8.0
"""The ratio of the largest to the smallest of positive values from which an axis is logarithmic."""
STILL = 1e-3
"""The relative change up to which a quantity is drawn as a constant: rounding is no curve."""


@dataclass(frozen=True)
class Panel:
    """One quantity along an orbit.

    Attributes:
        title: what it is.
        label: its symbol, on the vertical axis.
        values: [T].
        error: [T], the half width of a band around the curve; None if there is none.
        best: ``least`` or ``greatest``, which point is marked; "" for none.
    """

    title: str
    label: str
    values: Tensor
    error: Tensor | None = None
    best: str = "least"


def orbit_figure(t: Tensor, panels: Sequence[Panel], title: str) -> Any:
    """A ``matplotlib.figure.Figure``.

    Args:
        t: where the quantities were measured, [T].
        panels: the quantities, four in a row.
        title: the title of the figure.
    """
    from matplotlib.figure import Figure

    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 3.0 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).flatten()
    order = t.argsort()
    for i, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        _draw(axis, t[order], panel, order)
        if i + COLUMNS >= len(panels):
            axis.set_xlabel("t,  g = exp(t T)")
            axis.tick_params(labelbottom=True)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    # A name is text, also with dollars in it.
    figure.suptitle(fill(title, 120), parse_math=False, fontsize=11)
    return figure


def write_figure(figure: Any, path: str | Path) -> None:
    """Write a figure, whole or not at all; the suffix of the path says in what format.

    Raises:
        ValueError: if the suffix is none of .png, .pdf and .svg.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        wanted = ", ".join(f".{one}" for one in FORMATS)
        raise ValueError(f"a figure's path must end with one of {wanted}, found {str(path)!r}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130)
    write_atomically(path, buffer.getvalue())


def _draw(axis: Any, t: Tensor, panel: Panel, order: Tensor) -> None:
    values = panel.values[order]
    finite = values[values.isfinite()]
    axis.plot(t.numpy(), values.numpy(), linewidth=1.8)
    if panel.error is not None and bool(panel.error.any()):
        low, high = values - panel.error[order], values + panel.error[order]
        axis.fill_between(t.numpy(), low.numpy(), high.numpy(), alpha=0.2, linewidth=0)
    axis.axvline(0.0, color="0.6", linewidth=0.8, linestyle=":")
    title = panel.title
    if len(finite) == len(values) and _change(values) <= STILL:
        middle = float(values.mean())
        room = 0.1 * abs(middle) or 1.0
        axis.set_ylim(middle - room, middle + room)
        axis.ticklabel_format(axis="y", useOffset=False)
        title = f"{title}\nconstant to {_change(values):.0e}"
    elif len(finite):
        if _is_wide(finite):
            axis.set_yscale("log")
        best = int(values.argmax() if panel.best == "greatest" else values.argmin())
        if panel.best and len(finite) == len(values) and 0 < best < len(t) - 1:
            axis.plot([float(t[best])], [float(values[best])], "o", color="C3", markersize=5)
            title = f"{title}\n{panel.best} at t = {float(t[best]):.3g}"
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.set_ylabel(panel.label, parse_math=False)
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _change(values: Tensor) -> float:
    """The difference of the largest and the smallest, relative to the largest modulus."""
    least, largest = torch.aminmax(values)
    return float((largest - least) / values.abs().max().clamp(min=torch.finfo(values.dtype).tiny))


def _is_wide(values: Tensor) -> bool:
    least, largest = torch.aminmax(values)
    return bool(least > 0) and bool(largest > LOGARITHMIC * least)
