"""What a basis sees, and how its entries lie, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from metaopt.rules.learned.directions import Basis, NaturalSteps, UpdateEntries
from metaopt.rules.learned.features import Seen
from metaopt.rules.learned.sized import SizedUpdates
from metaopt.tasks.regression import TaskBatch


def seen(tasks: TaskBatch) -> Seen:
    return Seen(tasks.observe(tasks.initial))


def counts_of(basis: Basis, sizes: Sequence[int]) -> list[int]:
    """Entries of each layer, or of each pair."""
    if isinstance(basis, NaturalSteps | UpdateEntries | SizedUpdates):
        return [a * b for a, b in pairwise(sizes)]
    return [k * k for k in sizes[1:-1]]


def by_layer(rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
    return list(rows.split(list(counts), dim=-1))
