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
LOGARITHMIC = 20.0
"""The ratio of the largest to the smallest of positive values from which an axis is logarithmic."""


@dataclass(frozen=True)
class Panel:
    """One quantity along an orbit.

    Attributes:
        title: what it is.
        label: its symbol, on the vertical axis.
        values: [T], or [T, n] for n curves.
        error: [T], the half width of a band around one curve; None if there is none.
        is_constant: whether it stays, so that the axis shows changes of 10 % as small.
    """

    title: str
    label: str
    values: Tensor
    error: Tensor | None = None
    is_constant: bool = False


def orbit_figure(t: Tensor, panels: Sequence[Panel], title: str) -> Any:
    """A ``matplotlib.figure.Figure``; the least point of each single curve is marked.

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
    single = values.dim() == 1
    axis.plot(t.numpy(), values.numpy(), linewidth=1.8 if single else 0.8, color=_colour(single))
    if panel.error is not None and bool(panel.error.any()):
        low, high = values - panel.error[order], values + panel.error[order]
        axis.fill_between(t.numpy(), low.numpy(), high.numpy(), alpha=0.2, linewidth=0)
    axis.axvline(0.0, color="0.6", linewidth=0.8, linestyle=":")
    if panel.is_constant and len(finite):
        middle = float(finite.mean())
        axis.set_ylim(middle - 0.1 * abs(middle) - 1e-12, middle + 0.1 * abs(middle) + 1e-12)
        axis.ticklabel_format(axis="y", useOffset=False)
    elif single and len(finite) and _is_wide(finite):
        axis.set_yscale("log")
    title = panel.title
    if single and not panel.is_constant and len(finite) == len(values):
        least = int(values.argmin())
        if 0 < least < len(t) - 1:
            axis.plot([float(t[least])], [float(values[least])], "o", color="C3", markersize=5)
            title = f"{title}\nleast at t = {float(t[least]):.3g}"
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.set_ylabel(panel.label, parse_math=False)
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _colour(single: bool) -> str | None:
    """Many curves take their colours from matplotlib's cycle."""
    return "C0" if single else None


def _is_wide(values: Tensor) -> bool:
    least, largest = torch.aminmax(values)
    return bool(least > 0) and bool(largest > LOGARITHMIC * least)
