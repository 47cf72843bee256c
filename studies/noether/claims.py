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
_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Of Student's t at 97.5 %, for 1 to 10 degrees of freedom."""
_NORMAL = 1.959963984540054


def quantile(freedom: int) -> float:
    """Of Student's t at 97.5 %; beyond 10 degrees of freedom by its expansion, to 1e-4.

    Reference: Abramowitz and Stegun, 26.7.5.
    """
    if freedom <= len(_QUANTILES):
        return _QUANTILES[freedom - 1]
    z = _NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def interval(values: Array) -> tuple[float, float, float]:
    """Mean of independent values [runs], and its 95 % interval by Student's t."""
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) / math.sqrt(len(values))
    half = quantile(len(values) - 1) * spread
    return mean, mean - half, mean + half


def to_zero(values: Sequence[Array], shares: Sequence[float] = HALVINGS) -> Array:
    """What values at three learning rates tend to as lr -> 0.

    The parabola through the three, at 0, so that errors of order lr and lr^2 are gone.
    """
    weights = [
        math.prod(other / (other - share) for other in shares if other != share) for share in shares
    ]
    return np.asarray(sum(a * v for a, v in zip(weights, values, strict=True)))


VERDICTS = {True: "holds", False: "**does not hold**", None: ""}


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
    rows = []
    for one in claims:
        slack = f" (+-{100 * one['tolerance']:g} %)" if one["tolerance"] else ""
        rows.append(
            [
                one["what"],
                f"{one['mean']:.4g}",
                f"{one['low']:.4g} to {one['high']:.4g}",
                f"{one['relation']} {one['predicted']:.4g}{slack}",
                VERDICTS[one["holds"]],
            ]
        )
    return markdown_table(["measured", "mean", "95 % interval", "predicted", ""], rows)
