"""Means, correlations and their 95 % intervals, by resampling runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from metaopt.base.streams import Stream, generator

Array = NDArray[np.float64]

RESAMPLES = 4000


def _resampled(count: int) -> NDArray[np.int64]:
    """Which runs: [RESAMPLES, count]."""
    return generator(Stream.BOOTSTRAP, 0).integers(count, size=(RESAMPLES, count))


def mean_interval(values: Array) -> tuple[float, float, float]:
    """The mean of runs [n], and its percentile interval, paired if they are differences."""
    means = values[_resampled(len(values))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def share_interval(part: Array, whole: Array) -> tuple[float, float, float]:
    """mean(part) / mean(whole) over the same runs [n], and its interval."""
    rows = _resampled(len(part))
    low, high = np.quantile(part[rows].mean(1) / whole[rows].mean(1), (0.025, 0.975))
    return float(part.mean() / whole.mean()), float(low), float(high)


def pearson(x: Array, y: Array) -> Array:
    """Along the last axis."""
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    below = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / below


def ranks(x: Array) -> Array:
    """Of entries along the last axis from 0, equal ones their mean rank."""
    less = (x[..., :, None] > x[..., None, :]).sum(-1)
    equal = (x[..., :, None] == x[..., None, :]).sum(-1)
    return np.asarray(less + (equal - 1) / 2, dtype=np.float64)


def spearman(x: Array, y: Array) -> Array:
    """Pearson's of the ranks."""
    return pearson(ranks(x), ranks(y))


def partial(x: Array, y: Array, given: Array) -> Array:
    """Pearson's of what is left of x and y once ``given`` has been regressed out."""
    xy, xz, yz = pearson(x, y), pearson(x, given), pearson(y, given)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))


def correlation_interval(statistic: Callable[..., Array], *of: Array) -> tuple[float, float, float]:
    """A statistic of runs [n], and its percentile interval."""
    rows = _resampled(len(of[0]))
    # A few at a time: ranks compare all pairs.
    drawn = np.concatenate(
        [statistic(*(values[part] for values in of)) for part in np.array_split(rows, 40)]
    )
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return float(statistic(*of)), float(low), float(high)
