"""Makes training tasks more varied than their family, so that what is learned carries further.

References: Lv, Jiang and Li, *Learning Gradient Descent: Better Generalization and Longer
Horizons*, arXiv 1703.03633 (random scaling of the weights); Metz et al., *Understanding and
correcting pathologies in the training of learned optimizers*, arXiv 1810.10180 (varied tasks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metaopt.base.streams import Stream, uniforms
from metaopt.tasks.base import Hidden, TaskFamily
from metaopt.tasks.regression import TaskBatch


@dataclass(frozen=True)
class Rescaled(TaskFamily[TaskBatch]):
    """A family's tasks with data and initial weights of other magnitudes.

        X -> c_X X,   Y -> c_Y Y,   W_l -> c_l W_l   (initial),   log c uniform on [-r, r)

    Each task draws its own factors, from a separate stream by the task's index. What is scaled is
    bit for bit the task of the family.

    Args:
        family: the family of the tasks.
        log_range: r.
    """

    family: TaskFamily[TaskBatch]
    log_range: float

    def drawn(self, stream: Stream, seed: int, start: int, count: int) -> TaskBatch:
        """The family's tasks, rescaled."""
        tasks = self.family.drawn(stream, seed, start, count)
        tensors = (tasks.X, tasks.Y, *tasks.initial)
        draws = torch.from_numpy(uniforms(Stream.RESCALING, seed, start, count, len(tensors)))
        factors = ((2 * draws - 1) * self.log_range).exp()
        X, Y, *initial = (factors[:, i, None, None] * tensor for i, tensor in enumerate(tensors))
        return TaskBatch(X, Y, tuple(initial), tasks.s)


@dataclass(frozen=True)
class InTurn(TaskFamily[Any]):
    """Several families in turn: tasks i B .. (i + 1) B - 1 are of family i mod n.

    B is the meta-batch, so that all its tasks have tensors of the same shapes. Meta-batches of
    different families may have different shapes: a rule then trains on networks of several kinds.

    Args:
        families: the n families.
    """

    families: Sequence[TaskFamily[Any]]

    def drawn(self, stream: Stream, seed: int, start: int, count: int) -> Any:
        """The tasks of one meta-batch, ``count`` = B of them."""
        family = self.families[start // count % len(self.families)]
        return family.drawn(stream, seed, start, count)


@dataclass(frozen=True)
class Hiding:
    """Hides fields of observations in random meta-batches, so that rules learn to do without them.

    Args:
        shares: for each field of ``Observation`` that may be hidden, the share of the meta-batches
            in which it is, between 0 and 1.
        seed: the seed of the draws.
    """

    shares: Mapping[str, float]
    seed: int

    def of(self, number: int) -> Hidden:
        """The fields that are hidden in meta-batch ``number``, counted from 0."""
        draws = uniforms(Stream.HIDING, self.seed, number, 1, len(self.shares))[0]
        shares = zip(self.shares.items(), draws, strict=True)
        return frozenset(name for (name, share), draw in shares if draw < share)
