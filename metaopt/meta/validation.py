"""A validation of a learned optimizer: its losses, its curve, whether it is the best so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metaopt.base.loss_statistics import clean, geomean
from metaopt.teleport.base import TeleportTrace


@dataclass(frozen=True)
class Validation:
    """The result of running the averaged phi on the validation tasks of all processes.

    Attributes:
        outer_step: the outer step after which it was made.
        losses: the losses by inner step, [steps + 1, tasks].
        teleports: the teleports of all tasks, or None without teleports.
        best_before: the lowest score of the validations before it.
        epsilon: the loss below which nothing is gained (``meta.epsilon``).
    """

    outer_step: int
    losses: Tensor
    teleports: TeleportTrace | None
    best_before: float
    epsilon: float

    @cached_property
    def cleaned(self) -> NDArray[np.float64]:
        """The losses with floor and ceiling, on the CPU."""
        return clean(self.losses.double().cpu().numpy())

    @cached_property
    def curve(self) -> list[float]:
        """The geometric mean over tasks by inner step, index 0 before the first one."""
        return [float(value) for value in geomean(self.cleaned)]

    @property
    def score(self) -> float:
        """See ``validation_score``."""
        return validation_score(self.curve, self.epsilon)

    @property
    def is_best(self) -> bool:
        """Whether its score is lower than those before."""
        return self.score < self.best_before

    def row(self) -> dict[str, object]:
        """Its row in the metrics file, which the checkpoint contains, too."""
        return {"outer_step": self.outer_step, "val_loss_geomean": self.curve}


def validation_score(curve: Sequence[float], epsilon: float) -> float:
    """Mean of log(loss + epsilon) over the inner steps after the first; less is better.

    Good early and late, in the units of the meta-loss: of losses that rounding alone tells apart
    none counts as the better one.

    Args:
        curve: geometric-mean validation loss by inner step, index 0 before the first.
        epsilon: the loss below which nothing is gained.
    """
    return sum(math.log(loss + epsilon) for loss in curve[1:]) / (len(curve) - 1)
