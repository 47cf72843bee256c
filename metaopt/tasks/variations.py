"""Training tasks made more varied than their family, so that what is learned carries further.

References: Lv, Jiang and Li, *Learning Gradient Descent: Better Generalization and Longer
Horizons*, arXiv 1703.03633 (random scaling, of the weights); Metz et al., *Understanding and
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
    """Tasks of a family with data and initial weights of other magnitudes.

        X -> c_X X,   Y -> c_Y Y,   W_l -> c_l W_l   (initial),   log c uniform on [-r, r)

    each factor drawn for each task apart, from a stream of its own by the task's index: the task
    under the factors keeps its bits.

    Args:
        family: of the tasks.
        log_range: r.
    """

    family: TaskFamily[TaskBatch]
    log_range: float

    def drawn(self, stream: Stream, seed: int, start: int, count: int) -> TaskBatch:
        """The tasks of the family, rescaled."""
        tasks = self.family.drawn(stream, seed, start, count)
        tensors = (tasks.X, tasks.Y, *tasks.initial)
        draws = torch.from_numpy(uniforms(Stream.RESCALING, seed, start, count, len(tensors)))
        factors = ((2 * draws - 1) * self.log_range).exp()
        X, Y, *initial = (factors[:, i, None, None] * tensor for i, tensor in enumerate(tensors))
        return TaskBatch(X, Y, tuple(initial), tasks.s)


@dataclass(frozen=True)
class InTurn(TaskFamily[Any]):
    """Meta-batches of several families in turn: tasks [i B, (i + 1) B) are of family i mod n.

    Within a meta-batch all tasks have tensors of the same shapes; from one to the next they may
    differ, so that a rule meets networks of several kinds.

    Args:
        families: n of them.
    """

    families: Sequence[TaskFamily[Any]]

    def drawn(self, stream: Stream, seed: int, start: int, count: int) -> Any:
        """The tasks of a whole meta-batch."""
        family = self.families[start // count % len(self.families)]
        return family.drawn(stream, seed, start, count)


@dataclass(frozen=True)
class Hiding:
    """What is hidden from the rules, so that they learn to do without: for whole meta-batches.

    Args:
        shares: of the meta-batches, for each field of ``Observation`` that may be hidden.
        seed: of the draws.
    """

    shares: Mapping[str, float]
    seed: int

    def of(self, number: int) -> Hidden:
        """What is hidden in a meta-batch of trajectories, by its number from 0."""
        draws = uniforms(Stream.HIDING, self.seed, number, 1, len(self.shares))[0]
        shares = zip(self.shares.items(), draws, strict=True)
        return frozenset(name for (name, share), draw in shares if draw < share)
