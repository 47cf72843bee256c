"""An estimate by independent draws: their mean, and how far off it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean over independent draws.

    Attributes:
        mean: their mean.
        standard_error: their standard deviation divided by the square root of their number; 0 if
            the value is exact.
    """

    mean: float
    standard_error: float = 0.0

    @staticmethod
    def of(values: Tensor) -> Estimate:
        """The mean of draws [m] and its standard error, NaN for one draw."""
        wide = values.detach().double().cpu()
        error = float(wide.std()) / math.sqrt(len(wide)) if len(wide) > 1 else math.nan
        return Estimate(float(wide.mean()), error)

    def __str__(self) -> str:
        return (
            f"{self.mean:.4g} +- {self.standard_error:.2g}"
            if self.standard_error
            else (f"{self.mean:.4g}")
        )
