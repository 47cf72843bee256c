"""Training tasks made more varied than their family, so that what is learned carries further.

References: Lv, Jiang and Li, *Learning Gradient Descent: Better Generalization and Longer
Horizons*, arXiv 1703.03633 (random scaling, of the weights); Metz et al., *Understanding and
correcting pathologies in the training of learned optimizers*, arXiv 1810.10180 (varied tasks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from metaopt.streams import Stream, uniforms
from metaopt.tasks import TaskBatch


class TaskSource(Protocol):
    """What tasks are drawn from, by index."""

    def sample(
        self,
        stream: Stream,
        seed: int,
        start: int,
        count: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> TaskBatch:
        """Tasks ``start`` .. ``start + count - 1`` of a stream."""


@dataclass(frozen=True)
class Rescaled:
    """Tasks of a source with data and initial weights of other magnitudes.

        X -> c_X X,   Y -> c_Y Y,   W_l -> c_l W_l   (initial),   log c uniform on [-r, r)

    each factor drawn for each task apart, from a stream of its own by the task's index: the task
    under the factors keeps its bits.

    Args:
        source: of the tasks.
        log_range: r.
    """

    source: TaskSource
    log_range: float

    def sample(
        self,
        stream: Stream,
        seed: int,
        start: int,
        count: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> TaskBatch:
        """Tasks ``start`` .. ``start + count - 1`` of a stream, rescaled in float64 and cast."""
        tasks = self.source.sample(stream, seed, start, count, torch.float64)
        tensors = (tasks.X, tasks.Y, *tasks.initial)
        draws = torch.from_numpy(uniforms(Stream.RESCALING, seed, start, count, len(tensors)))
        factors = ((2 * draws - 1) * self.log_range).exp()
        X, Y, *initial = (
            (factors[:, i, None, None] * tensor).to(device, dtype)
            for i, tensor in enumerate(tensors)
        )
        return TaskBatch(X, Y, tuple(initial), tasks.s)
