"""Statistics of losses over tasks: geometric means, divergence, bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metaopt.base.streams import Stream, generator

Array = NDArray[np.float64]

FLOOR = 1e-30
CEILING = 1e30
SMALL_LOSS = 1e-3
"""Losses below it count as it where changes are relative to them."""
DIVERGED_FACTOR = 10.0
"""A task counts as diverged once its loss passes this many times its first loss."""


def clean(losses: Array) -> Array:
    """Losses within [1e-30, 1e30]; a non-finite one counts as 1e30."""
    return np.clip(np.where(np.isfinite(losses), losses, CEILING), FLOOR, CEILING)


def geomean(losses: Array) -> Array:
    """exp(mean log L) over the last axis, of cleaned losses."""
    return np.exp(np.log(clean(losses)).mean(axis=-1))


def diverged(losses: Array) -> int:
    """Tasks whose loss is ever non-finite or above 10 times the first: losses [steps + 1, B]."""
    bad = ~np.isfinite(losses) | (losses > DIVERGED_FACTOR * losses[0])
    return int(bad.any(axis=0).sum())


def resamples(tasks: int, count: int, seed: int) -> NDArray[np.int64]:
    """Bootstrap resamples of task indices, [count, tasks]."""
    return generator(Stream.BOOTSTRAP, seed).integers(0, tasks, size=(count, tasks))


def geomean_interval(values: Array, index: NDArray[np.int64]) -> tuple[Array, Array]:
    """95 % percentile bootstrap interval of the geometric mean over the last axis.

    Args:
        values: positive, [..., tasks].
        index: from ``resamples``; the same tasks are drawn for all leading entries.
    """
    # Counts of each task in each resample turn the resampling into one matrix product.
    counts = np.stack([np.bincount(row, minlength=values.shape[-1]) for row in index])
    means = np.log(values) @ counts.T / values.shape[-1]
    low, high = np.quantile(means, [0.025, 0.975], axis=-1)
    return np.exp(low), np.exp(high)


def ratio_of(a: Array, b: Array, index: NDArray[np.int64]) -> tuple[Array, Array, Array, Array]:
    """Geometric mean of a / b over the last axis, the ends of its interval, the share of a < b.

    Args:
        a: losses, [..., tasks].
        b: losses on the same tasks, [..., tasks].
        index: from ``resamples``.
    """
    quotient = a / b
    low, high = geomean_interval(quotient, index)
    # Not by ``geomean``, which floors what is a loss and not a quotient.
    return np.exp(np.log(quotient).mean(axis=-1)), low, high, (a < b).mean(axis=-1)
