"""Statistics of losses over tasks: geometric means, divergence, bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metaopt.base.streams import Stream, generator

Array = NDArray[np.float64]

FLOOR = 1e-30
CEILING = 1e30
SMALL_LOSS = 1e-3
"""The smallest loss that relative changes are measured against."""
DIVERGED_FACTOR = 10.0
"""A task counts as diverged if its loss exceeds this many times its first loss."""


def clean(losses: Array) -> Array:
    """Losses clipped to [1e-30, 1e30]; one that is not finite becomes 1e30."""
    return np.clip(np.where(np.isfinite(losses), losses, CEILING), FLOOR, CEILING)


def geomean(losses: Array) -> Array:
    """exp(mean log L) over the last axis, after ``clean``."""
    return np.exp(np.log(clean(losses)).mean(axis=-1))


def diverged(losses: Array) -> int:
    """The number of tasks whose loss is ever not finite, or above 10 times the first.

    Args:
        losses: [steps + 1, B].
    """
    bad = ~np.isfinite(losses) | (losses > DIVERGED_FACTOR * losses[0])
    return int(bad.any(axis=0).sum())


def resamples(tasks: int, count: int, seed: int) -> NDArray[np.int64]:
    """Bootstrap resamples: task indices drawn with replacement, [count, tasks]."""
    return generator(Stream.BOOTSTRAP, seed).integers(0, tasks, size=(count, tasks))


def geomean_interval(values: Array, index: NDArray[np.int64]) -> tuple[Array, Array]:
    """The 95 % percentile bootstrap interval of the geometric mean over the last axis.

    Args:
        values: positive numbers, [..., tasks].
        index: from ``resamples``; all leading entries use the same resamples.

    Returns:
        The lower and the upper end, each [...].
    """
    # Counts of each task in each resample turn the resampling into one matrix product.
    counts = np.stack([np.bincount(row, minlength=values.shape[-1]) for row in index])
    means = np.log(values) @ counts.T / values.shape[-1]
    low, high = np.quantile(means, [0.025, 0.975], axis=-1)
    return np.exp(low), np.exp(high)


def ratio_of(a: Array, b: Array, index: NDArray[np.int64]) -> tuple[Array, Array, Array, Array]:
    """exp(mean log (a / b)) over the last axis, its bootstrap interval, and the share of a < b.

    Args:
        a: losses, [..., tasks].
        b: losses on the same tasks, [..., tasks].
        index: from ``resamples``.
    """
    quotient = a / b
    low, high = geomean_interval(quotient, index)
    # Not ``geomean``: it clips losses, and these are quotients.
    return np.exp(np.log(quotient).mean(axis=-1)), low, high, (a < b).mean(axis=-1)
