"""Bounds for a learned step size: any real number -> [low, high]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metaopt.base.fields import Model, PositiveFloat, described
from metaopt.base.loss_statistics import FLOOR
from metaopt.rules.learned.features import Seen


class StepSizeBound(ABC):
    """z -> eta in [low, high].

    Args:
        low: smallest step size, above 0.
        high: largest step size.

    Attributes:
        reads_layers: whether the inputs of layers are read for it.
    """

    reads_layers: ClassVar[bool] = False

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    @property
    @abstractmethod
    def start(self) -> float:
        """The z of an untrained rule."""

    @abstractmethod
    def __call__(self, z: Tensor, seen: Seen) -> Tensor:
        """The step sizes [B] of z [B]."""


class Clamp(StepSizeBound):
    """eta = min(max(z, low), high), as in the paper; no gradient outside the interval."""

    @property
    def start(self) -> float:
        """The geometric mean of the bounds, since z is the step size."""
        return math.sqrt(self.low * self.high)

    def __call__(self, z: Tensor, seen: Seen) -> Tensor:
        """The clamped z."""
        return z.clamp(self.low, self.high)


class Sigmoid(StepSizeBound):
    """eta = low (high / low)^sigmoid(z): smooth, even on a logarithmic scale."""

    @property
    def start(self) -> float:
        """0: the geometric mean of the bounds."""
        return 0.0

    def __call__(self, z: Tensor, seen: Seen) -> Tensor:
        """The interpolated step size."""
        return self.low * torch.exp(torch.sigmoid(z) * math.log(self.high / self.low))


class Natural(StepSizeBound):
    """eta = e^z / max_l curvature_l, clamped to the interval.

    z = 0 gives the largest step of gradient descent that is safe for each layer alone.
    """

    reads_layers = True

    @property
    def start(self) -> float:
        """-log 2: half of the step that is safe for each layer alone, since all layers step."""
        return -math.log(2)

    def __call__(self, z: Tensor, seen: Seen) -> Tensor:
        """The safe step, times e^z."""
        safe = 1 / (seen.curvatures.amax(1) + FLOOR)
        return (z.exp() * safe).clamp(self.low, self.high)


STEP_BOUNDS: dict[str, type[StepSizeBound]] = {
    "sigmoid": Sigmoid,
    "clamp": Clamp,
    "natural": Natural,
}


class StepSizeConfig(Model):
    """The fields of rules that give one step size of gradient descent."""

    step_min: PositiveFloat = described(1e-7, "smallest step size")
    step_max: PositiveFloat = described(5e-3, "largest step size")
    step_bound: Literal["sigmoid", "clamp", "natural"] = described(
        "natural",
        "how the step size stays between them: smoothly on a logarithmic scale; cut off, as in "
        "the paper; or cut off, in units of the largest step that is safe",
    )

    @model_validator(mode="after")
    def _ordered(self) -> StepSizeConfig:
        if self.step_min >= self.step_max:
            raise ValueError(f"step_min must be below step_max, found {self.step_min}")
        return self

    def bound(self) -> StepSizeBound:
        """What keeps the step size in its interval."""
        return STEP_BOUNDS[self.step_bound](self.step_min, self.step_max)
