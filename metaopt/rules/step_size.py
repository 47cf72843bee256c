"""Bounds for a learned step size: any real number -> [low, high]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class StepSizeBound(ABC):
    """z -> eta in [low, high].

    Args:
        low: smallest step size, above 0.
        high: largest step size.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    @property
    @abstractmethod
    def start(self) -> float:
        """The z at which the step size is the geometric mean of low and high."""

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """The step size, of the shape of z."""


class Clamp(StepSizeBound):
    """eta = min(max(z, low), high), as in the paper; no gradient outside the interval."""

    @property
    def start(self) -> float:
        """The geometric mean itself."""
        return math.sqrt(self.low * self.high)

    def __call__(self, z: Tensor) -> Tensor:
        """The clamped z."""
        return z.clamp(self.low, self.high)


class Sigmoid(StepSizeBound):
    """eta = low (high / low)^sigmoid(z): smooth, even on a logarithmic scale."""

    @property
    def start(self) -> float:
        """Half way on the logarithmic scale."""
        return 0.0

    def __call__(self, z: Tensor) -> Tensor:
        """The interpolated step size."""
        return self.low * torch.exp(torch.sigmoid(z) * math.log(self.high / self.low))
