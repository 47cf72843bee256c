"""What a curve looks like: loss, error and penalty at equally spaced t, in numbers and a figure.

integral   sum_i (f_i + f_{i+1}) / 2 |w_{i+1} - w_i| / sum_i |w_{i+1} - w_i|
barrier    max over t of  L(t) - (1-x) L(end k) - x L(end k+1),   x from 0 to 1 between two ends
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metaopt.base.tables import markdown_table
from metaopt.landscape.between.refresh import refresh_batchnorm, with_statistics
from metaopt.landscape.data import Data
from metaopt.landscape.orbit_figure import write_figure
from metaopt.landscape.samples import Loss, Samples

QUANTITIES = ("loss", "error", "penalty")


class WeightsAlong(Protocol):
    """What is asked of a curve."""

    weight_decay: float

    @property
    def ends(self) -> int:
        """The number of ends."""

    def weights(self, t: float) -> dict[str, Tensor]:
        """The parameters at t."""

    def buffers(self, t: float) -> dict[str, Tensor]:
        """The buffers at t."""


@dataclass(frozen=True)
class Summary:
    """One quantity along a curve.

    Attributes:
        start: at t = 0.
        end: at t = 1.
        min: the smallest.
        max: the largest.
        mean: the mean over t, by the trapezoidal rule.
        integral: the mean over the arc length, likewise.
    """

    start: float
    end: float
    min: float
    max: float
    mean: float
    integral: float


@dataclass(frozen=True, eq=False)
class CurveReport:
    """Quantities along a curve, each a float64 tensor on the CPU.

    Attributes:
        t: where, [T], from 0 to 1.
        loss: the mean loss over the samples, without the penalty, [T].
        error: the share of samples whose largest output is not that of their class, [T]; NaN if
            the targets are no classes.
        penalty: (wd/2) |w(t)|^2, over the parameters that require gradients, [T].
        chords: |w(t_{i+1}) - w(t_i)|, over all parameters, [T - 1].
        ends: K, the number of ends, at t = k / (K - 1).
    """

    t: Tensor
    loss: Tensor
    error: Tensor
    penalty: Tensor
    chords: Tensor
    ends: int = 2

    @property
    def length(self) -> float:
        """The length of the curve, the sum of its chords."""
        return float(self.chords.sum())

    @property
    def barriers(self) -> Tensor:
        """max_t [L(t) - (1-x) L(end k) - x L(end k+1)] from each end to the next, [K - 1]."""
        per = (len(self.t) - 1) // (self.ends - 1)
        parts = self.loss.unfold(0, per + 1, per)
        x = torch.linspace(0, 1, per + 1, dtype=torch.float64)
        return (parts - (1 - x) * parts[:, :1] - x * parts[:, -1:]).amax(1)

    @property
    def barrier(self) -> float:
        """The largest of ``barriers``: how far the loss rises above the line between ends."""
        return float(self.barriers.max())

    def summary(self, name: str = "loss") -> Summary:
        """Start, end, min, max, mean and integral of ``loss``, ``error`` or ``penalty``.

        Raises:
            ValueError: if the name is none of these.
        """
        if name not in QUANTITIES:
            raise ValueError(f"name must be one of {', '.join(QUANTITIES)}, found {name!r}")
        values: Tensor = getattr(self, name)
        middles = (values[1:] + values[:-1]) / 2
        mean, length = middles.mean(), self.chords.sum()
        integral = (middles * self.chords).sum() / length if length > 0 else mean
        found = (values[0], values[-1], values.min(), values.max(), mean, integral)
        return Summary(*(float(value) for value in found))

    def rows(self) -> list[dict[str, float]]:
        """One plain dictionary for each t, e.g. for ``pandas.DataFrame``."""
        columns = ("t", *QUANTITIES)
        return [
            {name: float(getattr(self, name)[i]) for name in columns} for i in range(len(self.t))
        ]

    def plot(
        self, path: str | Path | None = None, beside: Mapping[str, CurveReport] | None = None
    ) -> Any:
        """Loss and error along t in one figure, written if a path is given.

        Args:
            path: a file that ends with .png, .pdf or .svg; None: none is written.
            beside: reports of other curves, by their names, e.g. the chord's.

        Returns:
            The ``matplotlib.figure.Figure``, which a notebook shows.

        Raises:
            ValueError: if the path ends otherwise.
        """
        figure = _figure({"curve": self, **(beside or {})})
        if path is not None:
            write_figure(figure, path)
        return figure

    def __str__(self) -> str:
        header = ["", "start", "end", "min", "max", "mean", "integral"]
        shown = [name for name in QUANTITIES if not bool(getattr(self, name).isnan().all())]
        cells = [
            [name, *(f"{value:.4g}" for value in vars(self.summary(name)).values())]
            for name in shown
        ]
        table = markdown_table(header, cells)
        return f"{table}\nbarrier {self.barrier:.4g}, length {self.length:.4g}"

    __repr__ = __str__


def evaluated(
    curve: WeightsAlong,
    model: nn.Module,
    loss: Loss,
    data: Data,
    points: int,
    statistics: Data,
) -> CurveReport:
    """The report of a curve.

    Args:
        curve: the curve.
        model: a model of its own to put weights in, in evaluation mode.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
        data: what is evaluated on.
        points: how many t.
        statistics: the data over which running statistics are taken.

    Raises:
        ValueError: if the points miss an end.
    """
    segments = curve.ends - 1
    if points < 2 or (points - 1) % segments:
        raise ValueError(
            f"points must be 1 more than a multiple of {segments}, so that all {curve.ends} ends "
            f"are among them, found {points}"
        )
    probe = Probe(model, loss, data, statistics)
    t = [i / (points - 1) for i in range(points)]
    rows, chords = [], []
    before: dict[str, Tensor] = {}
    for one in t:
        weights = curve.weights(one)
        loss_here, error = probe.at(weights, curve.buffers(one))
        rows.append((loss_here, error, penalty(model, weights, curve.weight_decay)))
        if before:
            chords.append(distance(before, weights))
        before = weights
    columns = torch.tensor(rows, dtype=torch.float64, device="cpu")
    return CurveReport(
        t=torch.tensor(t, dtype=torch.float64, device="cpu"),
        loss=columns[:, 0],
        error=columns[:, 1],
        penalty=columns[:, 2],
        chords=torch.tensor(chords, dtype=torch.float64, device="cpu"),
        ends=curve.ends,
    )


class Probe:
    """Loss and error of one model with many weights.

    Args:
        model: a model to put weights in, in evaluation mode.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
        data: what is evaluated on.
        statistics: the data over which running statistics are taken at each call.
    """

    def __init__(self, model: nn.Module, loss: Loss, data: Data, statistics: Data) -> None:
        self._samples = Samples(model, loss, data)
        self._statistics = statistics
        self._tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._is_refreshed = bool(with_statistics(model))

    @torch.no_grad()
    def at(
        self, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> tuple[float, float]:
        """(mean loss, share of wrong classes or NaN)."""
        samples = self._samples
        for path, value in (*weights.items(), *buffers.items()):
            self._tensors[path].copy_(value)
        if self._is_refreshed:
            refresh_batchnorm(samples.model, self._statistics)
        loss, wrong, judged = 0.0, 0, 0
        for inputs, targets in samples.batches():
            outputs = samples.outputs({}, inputs)
            loss += len(targets) / samples.count * float(samples.loss(outputs, targets))
            misses = wrong_classes(outputs, targets)
            if misses is not None:
                wrong, judged = wrong + int(misses.sum()), judged + misses.numel()
        return loss, wrong / judged if judged else math.nan


def wrong_classes(outputs: Any, targets: Tensor) -> Tensor | None:
    """Where the largest output is not the target's, bool; None if the targets are no classes.

    Negative targets, which ``cross_entropy`` leaves out, are left out.
    """
    axis = class_axis(outputs, targets)
    return None if axis is None else (outputs.argmax(axis) != targets)[targets >= 0]


def class_axis(outputs: Any, targets: Tensor) -> int | None:
    """The axis of classes: 1, as ``cross_entropy`` has it, or the last; None if there is none."""
    if not isinstance(outputs, Tensor) or targets.is_floating_point() or targets.is_complex():
        return None
    for axis in (1, outputs.dim() - 1):
        shape = list(outputs.shape)
        if 1 <= axis < len(shape) and [*shape[:axis], *shape[axis + 1 :]] == list(targets.shape):
            return axis
    return None


def penalty(model: nn.Module, weights: Mapping[str, Tensor], weight_decay: float) -> float:
    """(wd/2) |w|^2 over the parameters that require gradients in a model."""
    trained = (path for path, one in model.named_parameters() if one.requires_grad)
    return weight_decay / 2 * sum(float(weights[p].double().square().sum()) for p in trained)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """|w - w'|, in float64."""
    squares = (
        (value.double() - other[path].double()).square().sum() for path, value in one.items()
    )
    return math.sqrt(sum(float(square) for square in squares))


def _figure(reports: Mapping[str, CurveReport]) -> Any:
    from matplotlib.figure import Figure

    names = ["loss"]
    if not all(bool(report.error.isnan().all()) for report in reports.values()):
        names.append("error")
    figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for label, report in reports.items():
            axis.plot(report.t.numpy(), getattr(report, name).numpy(), linewidth=1.8, label=label)
        axis.set_xlabel("t")
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        if len(reports) > 1:
            axis.legend(fontsize=8)
    return figure
