"""An estimate by independent draws: their mean, and how far off it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean over independent draws.

    Attributes:
        mean: their mean.
        standard_error: their standard deviation divided by the square root of their number; 0 for
            what is exact, NaN for a single draw.
    """

    mean: float
    standard_error: float

    def __str__(self) -> str:
        error = f" +- {self.standard_error:.2g}" if self.standard_error else ""
        return f"{self.mean:.4g}{error}"


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of draws [m], and its standard error, NaN for one draw."""
    wide = values.detach().double().cpu()
    error = float(wide.std()) / math.sqrt(len(wide)) if len(wide) > 1 else math.nan
    return float(wide.mean()), error
