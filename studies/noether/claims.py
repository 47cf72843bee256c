"""What a part says: a mean over independent runs, its 95 % interval, what was predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaopt.base.tables import markdown_table

Array = NDArray[np.float64]

HALVINGS = (1.0, 0.5, 0.25)
"""Learning rates of an extrapolation, as shares of the largest."""
_TO_ZERO = (1 / 3, -2.0, 8 / 3)
_Z = 1.959963984540054


def interval(values: Array) -> tuple[float, float, float]:
    """Mean of independent values [runs], and its 95 % interval by Student's t.

    The quantile is its expansion in 1 / (runs - 1), exact to 0.2 % from 8 runs on
    (Abramowitz and Stegun, 26.7.5).
    """
    nu = len(values) - 1
    z = _Z
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    quantile = z + first / nu + second / nu**2 + third / nu**3
    mean = float(values.mean())
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def to_zero(values: Sequence[Array]) -> Array:
    """What values at learning rates lr, lr / 2, lr / 4 tend to as lr -> 0.

    The parabola through the three, at 0, so that errors of order lr and lr^2 are gone.
    """
    return np.asarray(sum(a * v for a, v in zip(_TO_ZERO, values, strict=True)))


@dataclass(frozen=True)
class Claim:
    """One sentence with a number in it."""

    what: str  # was measured
    mean: float  # over independent runs
    low: float  # end of the 95 % interval of the mean
    high: float  # the other
    relation: str  # of the mean to the prediction: "=", "!=", "<", ">", or "~": only told
    predicted: float
    tolerance: float = 0.0
    """Share of the prediction that may be missed, where an error of that order is known."""

    @property
    def holds(self) -> bool | None:
        """Whether the 95 % interval says so; None for what is only told."""
        if self.relation == "~":
            return None
        slack = self.tolerance * abs(self.predicted)
        inside = self.low - slack <= self.predicted <= self.high + slack
        return {
            "=": inside,
            "!=": not inside,
            "<": self.high < self.predicted,
            ">": self.low > self.predicted,
        }[self.relation]


def claim(
    what: str, values: Array, relation: str, predicted: float, tolerance: float = 0.0
) -> Claim:
    """A claim of the mean of independent values [runs]."""
    return Claim(what, *interval(np.asarray(values)), relation, float(predicted), tolerance)


def as_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """With what holds."""
    return [asdict(one) | {"holds": one.holds} for one in claims]


def table(claims: Sequence[dict[str, Any]]) -> str:
    """A line for each claim, from ``as_json``."""
    words = {True: "holds", False: "**does not hold**", None: ""}
    rows = []
    for one in claims:
        slack = f" (+-{100 * one['tolerance']:g} %)" if one["tolerance"] else ""
        rows.append(
            [
                one["what"],
                f"{one['mean']:.4g}",
                f"{one['low']:.4g} to {one['high']:.4g}",
                f"{one['relation']} {one['predicted']:.4g}{slack}",
                words[one["holds"]],
            ]
        )
    return markdown_table(["measured", "mean", "95 % interval", "predicted", ""], rows)
