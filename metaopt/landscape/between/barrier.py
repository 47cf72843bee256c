"""The loss on the straight line between two models.

w(t) = (1 - t) w_a + t w_b,    barrier = max over t of  L(t) - (1 - t) L(0) - t L(1)
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metaopt.landscape.between.align import By, align, require_alike
from metaopt.landscape.between.align_report import AlignReport
from metaopt.landscape.between.curve_evaluation import Probe
from metaopt.landscape.data import Data
from metaopt.landscape.samples import Loss
from metaopt.symmetry.discovery.find import plain


@dataclass(frozen=True)
class Barrier:
    """The loss on the chord between two models.

    Attributes:
        value: max over t of L(t) - (1 - t) L(0) - t L(1), at least 0.
        at: the t of the maximum.
        points: the t at which the loss was taken, from 0 to 1.
        losses: L at each.
        errors: the share of samples that are classified wrongly at each; None if the targets are
            no classes.
        alignment: what ``metaopt.align`` reports of b; None if it was not moved.
    """

    value: float
    at: float
    points: tuple[float, ...]
    losses: tuple[float, ...]
    errors: tuple[float, ...] | None
    alignment: AlignReport | None

    @property
    def error_value(self) -> float | None:
        """The barrier of the errors."""
        return None if self.errors is None else _highest(self.points, self.errors)[0]


def barrier(
    a: nn.Module,
    b: nn.Module,
    loss: Loss,
    data: Data,
    points: int = 25,
    align: By | None = None,
    *,
    statistics: Data | None = None,
    **options: Any,
) -> Barrier:
    """How much higher the loss is on the chord from a to b than between their losses.

        w(t) = (1 - t) w_a + t w_b,    value = max over t of  L(t) - (1 - t) L(0) - t L(1)

    The models stay as they are; the loss is taken in evaluation mode. With BatchNorm, statistics
    are taken anew at every point, the ends too (``metaopt.refresh_batchnorm``).

    Args:
        a: a model.
        b: another of the same structure.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
        data: a pair (inputs, targets), or an iterable of such pairs.
        points: how many t are tried, from 0 to 1, at least 3.
        align: how b is moved along its symmetries first (``metaopt.align``); None: not at all.
        statistics: the data over which statistics of BatchNorm are taken; None: ``data``.
        options: further arguments of ``metaopt.align``.

    Raises:
        ValueError: if the models differ in structure, or data or ``points`` do not fit.
    """
    if points < 3:
        raise ValueError(f"points must be at least 3, found {points}")
    require_alike(a, b)
    report = None
    if align is not None:
        b, report = _aligned(a, b, align, data, options)
    elif options:
        raise ValueError(f"without align nothing takes {', '.join(sorted(options))}")
    between = deepcopy(plain(a)).eval()
    probe = Probe(between, loss, data, data if statistics is None else statistics)
    grid = tuple(float(t) for t in torch.linspace(0, 1, points, dtype=torch.float64))
    found = []
    for t in grid:
        _go(between, plain(a), plain(b), t)
        found.append(probe.at({}, {}))
    losses, errors = zip(*found, strict=True)
    value, at = _highest(grid, losses)
    is_judged = not any(math.isnan(error) for error in errors)
    return Barrier(value, at, grid, losses, errors if is_judged else None, report)


def _aligned(
    a: nn.Module, b: nn.Module, by: Any, data: Data, options: dict[str, Any]
) -> tuple[nn.Module, AlignReport]:
    return align(a, b, by, data=data, **options)


def _highest(points: tuple[float, ...], values: tuple[float, ...]) -> tuple[float, float]:
    """The largest height over the line between the ends, and where it is."""
    heights = [
        v - (1 - t) * values[0] - t * values[-1] for t, v in zip(points, values, strict=True)
    ]
    best = max(range(len(heights)), key=heights.__getitem__)
    return max(heights[best], 0.0), points[best]


@torch.no_grad()
def _go(between: nn.Module, a: nn.Module, b: nn.Module, t: float) -> None:
    """Put w(t) into a model; what is no number of a float type is taken from the nearer end."""
    mine = dict(between.named_parameters()) | dict(between.named_buffers())
    ends = [dict(one.named_parameters()) | dict(one.named_buffers()) for one in (a, b)]
    for path, tensor in mine.items():
        x, y = (end[path] for end in ends)
        if tensor.is_floating_point() and 0 < t < 1:
            tensor.copy_((1 - t) * x + t * y)
        else:
            tensor.copy_(x if t < 0.5 else y)
