"""The loss on a plane through three points of a curve, and its picture.

w = w(0) + x u + y v,   u = w(1) - w(0) normed,   v = w(1/2) - w(0) without its part along u, normed
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.landscape.between.curve_evaluation import Probe, WeightsAlong
from metaopt.landscape.data import Data
from metaopt.landscape.orbit_figure import write_figure
from metaopt.landscape.samples import Loss

DRAWN = 61
"""Points at which a curve is drawn."""
FLAT = 1e-9
"""How high w(1/2) must be above the chord, as a share of the chord, to make a plane."""
LEVELS = 24
COLOURS = ("C3", "C1", "C0", "C4", "C5", "C7")
"""Of curves: none is a colour of the levels."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Plane:
    """Loss and error on a grid in a plane of weights, float64 on the CPU.

    Attributes:
        x: the grid along u, [size].
        y: the grid along v, [size].
        loss: the mean loss, [size, size], rows along y.
        error: the share of wrong classes, likewise; NaN if the targets are no classes.
        curves: of each curve its points (x, y), [61, 2], by name; ``curve`` is the first.
        ends: the ends of the first curve, [K, 2].
    """

    x: Tensor
    y: Tensor
    loss: Tensor
    error: Tensor
    curves: dict[str, Tensor]
    ends: Tensor

    def plot(self, path: str | Path | None = None, quantity: str = "loss") -> Any:
        """Level sets and curves in one figure, written if a path is given.

        Args:
            path: a file that ends with .png, .pdf or .svg; None: none is written.
            quantity: ``loss`` or ``error``.

        Returns:
            The ``matplotlib.figure.Figure``, which a notebook shows.

        Raises:
            ValueError: if the path ends otherwise, or the quantity is unknown.
        """
        if quantity not in ("loss", "error"):
            raise ValueError(f"quantity must be loss or error, found {quantity!r}")
        figure = self._figure(getattr(self, quantity), quantity)
        if path is not None:
            write_figure(figure, path)
        return figure

    def _figure(self, values: Tensor, name: str) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 4.8), layout="constrained")
        axis = figure.subplots()
        # What matters is near the curve, so that levels get denser towards the least loss.
        finite = values[values.isfinite()]
        lowest, highest = (
            (float(finite.min()), float(finite.quantile(0.9))) if len(finite) else (0, 1)
        )
        span = max(highest - lowest, 1e-12)
        levels = lowest + span * torch.linspace(0, 1, LEVELS, dtype=torch.float64) ** 2
        shown = values.nan_to_num(nan=highest, posinf=highest).clamp(max=highest)
        filled = axis.contourf(
            self.x.numpy(), self.y.numpy(), shown.numpy(), levels=levels.numpy(), cmap="viridis_r"
        )
        figure.colorbar(filled, ax=axis, label=name)
        for colour, (label, points) in zip(cycle(COLOURS), self.curves.items(), strict=False):
            axis.plot(*points.T.numpy(), color=colour, label=label)
        chord = self.ends.T.numpy()
        axis.plot(*chord, color="white", linewidth=1.0, linestyle="--", label="chord")
        axis.plot(*chord, "o", color="black", markersize=5)
        axis.set_xlabel("x: along the chord")
        axis.set_ylabel("y: across")
        axis.legend(fontsize=8)
        return figure


class _Frame:
    """Coordinates in the plane through three points."""

    def __init__(self, start: Weights, end: Weights, middle: Weights) -> None:
        self.start = {path: value.double() for path, value in start.items()}
        along, across = self._from_start(end), self._from_start(middle)
        length = _norm(along)
        self.u = {path: value / length for path, value in along.items()} if length else along
        part = _inner(across, self.u)
        for path in across:
            across[path] -= part * self.u[path]
        height = _norm(across)
        if length == 0 or height <= FLAT * length:
            raise ValueError(
                "w(0), w(1/2) and w(1) lie on one line, so that they make no plane: the curve is "
                "its chord; train a bend, or take the plane of another curve and draw this beside"
            )
        # Once more, against rounding.
        part = _inner(across, self.u)
        across = {path: value - part * self.u[path] for path, value in across.items()}
        height = _norm(across)
        self.v = {path: value / height for path, value in across.items()}

    def coordinates(self, weights: Weights) -> tuple[float, float]:
        """(x, y) of the projection on the plane."""
        moved = self._from_start(weights)
        return _inner(moved, self.u), _inner(moved, self.v)

    def at(self, x: float, y: float) -> dict[str, Tensor]:
        """w(0) + x u + y v."""
        return {path: w + x * self.u[path] + y * self.v[path] for path, w in self.start.items()}

    def _from_start(self, weights: Weights) -> dict[str, Tensor]:
        return {path: weights[path].double() - w for path, w in self.start.items()}


def plane_of(
    curves: Mapping[str, WeightsAlong],
    model: nn.Module,
    loss: Loss,
    data: Data,
    statistics: Data,
    *,
    size: int,
    margin: float,
) -> Plane:
    """The plane of the first of some curves; arguments and errors as of ``WeightCurve.plane``.

    Args:
        curves: the curves by name.
        model: a model of its own to put weights in, in evaluation mode.
        loss: the loss.
        data: what is evaluated on.
        statistics: the data over which running statistics are taken.
        size: points on each side of the grid.
        margin: how far the grid goes beyond what is drawn.
    """
    if size < 2:
        raise ValueError(f"size must be at least 2, found {size}")
    first = next(iter(curves.values()))
    frame = _Frame(*(first.weights(t) for t in (0.0, 1.0, 0.5)))
    t = [i / (DRAWN - 1) for i in range(DRAWN)]
    drawn = {}
    for name, curve in curves.items():
        if set(curve.weights(0.0)) != set(frame.start):
            raise ValueError(f"curve {name!r} is of another model than the plane")
        drawn[name] = _points(frame, curve, t)
    ends = _points(frame, first, [k / (first.ends - 1) for k in range(first.ends)])
    everything = torch.cat([*drawn.values(), ends])
    low, high = everything.amin(0), everything.amax(0)
    room = margin * (high - low)
    x, y = (
        torch.linspace(float(a), float(b), size, dtype=torch.float64, device="cpu")
        for a, b in zip(low - room, high + room, strict=True)
    )
    probe = Probe(model, loss, data, statistics)
    found = []
    for j in y.tolist():
        for i in x.tolist():
            # Of running statistics only those at t = 0 are known here; they are taken anew.
            found.append(probe.at(frame.at(i, j), first.buffers(0.0)))
    values = torch.tensor(found, dtype=torch.float64, device="cpu").reshape(size, size, 2)
    return Plane(x, y, values[..., 0], values[..., 1], drawn, ends)


def _points(frame: _Frame, curve: WeightsAlong, t: list[float]) -> Tensor:
    places = [frame.coordinates(curve.weights(one)) for one in t]
    return torch.tensor(places, dtype=torch.float64, device="cpu")


def _inner(one: Weights, other: Weights) -> float:
    return sum(float((value * other[path]).sum()) for path, value in one.items())


def _norm(one: Weights) -> float:
    return math.sqrt(_inner(one, one))
