"""Positive scaling of single hidden units, on parameters of any shape: exact on any data.

    w -> exp(l) w,   l = the sum of +-t_i over the units i that an entry makes (+) or reads (-)

This is the diagonal part of the general linear group (``symmetry.units``). Gradients move by
exp(-l) and their squares by exp(-2 l), the inverse transpose. On mini-batches no larger part of the
general linear group keeps the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaopt.base.loss_statistics import SMALL_LOSS
from metaopt.base.network import Weights, forward
from metaopt.symmetry.actions import InexactActionError
from metaopt.symmetry.limits import NormLimit
from metaopt.tasks.base import Ground, Observation, Problem, observed_loss
from metaopt.teleport.base import Generators, Need, Scaled, State, TeleportTrace, log_ratio
from metaopt.teleport.guard import drift


@dataclass(frozen=True)
class UnitReport:
    """What one scaling of hidden units did.

    Attributes:
        t: the logarithms of the factors that were applied, [B, K].
        log_factors: l of each entry, tensors shaped like the weights.
        before: the weights before the teleport.
        passed: None, since the engine makes no forward pass.
    """

    together: ClassVar[int] = 1

    t: Tensor
    log_factors: Weights
    before: Weights
    passed: None = None

    def moved(self, rule: Scaled, state: State) -> State:
        """The state of a rule at the weights exp(l) w."""
        return rule.scaled(state, self.t, self.log_factors)

    @classmethod
    def traced(
        cls, reports: Sequence[UnitReport], problem: Problem, after: Sequence[Observation]
    ) -> TeleportTrace:
        """The trace of one step; costs one more evaluation of the loss.

        The scaling is exact up to rounding. The drift reported is that of the outputs if they are
        known, and otherwise the relative change of the loss on the step's data.
        """
        (report,), (observation,) = reports, after
        with torch.no_grad():
            before, loss = problem.seen_loss(report.before), observed_loss(observation)
            network = problem.network
            if network is not None:
                X, s = network.X, network.s
                old, new = (forward(w, X, s).outputs for w in (report.before, observation.weights))
                moved = drift(old, new, network.target_norm)
            else:
                moved = (loss - before).abs() / before.clamp(min=SMALL_LOSS)
            return TeleportTrace(
                norm=report.norm[None],
                drift=moved[None],
                refused=torch.zeros_like(moved, dtype=torch.bool)[None],
                log_ratio=log_ratio(before, loss)[None],
            )

    @property
    def norm(self) -> Tensor:
        """||t||, [B], without a graph."""
        return torch.linalg.vector_norm(self.t.detach(), dim=1)


class UnitEngine:
    """w -> exp(l) w, with sqrt(mean_i t_i^2) within a limit: scales hidden units.

    Args:
        limit: the limit on ||t|| / sqrt(K), the root mean square of t over the hidden units. Being
            a mean, it means the same for networks of any width.
    """

    needs: ClassVar[Need] = Need.UNITS
    reads_data = False

    def __init__(self, limit: NormLimit) -> None:
        self.limit = limit

    def check(self, ground: Ground, weights: Weights) -> None:
        """Raise ``InexactActionError`` if the hidden units are not known."""
        if ground.units is None:
            raise InexactActionError(
                "scaling hidden units needs to know them: a family of your own lists them as "
                "symmetries = metaopt.symmetries(its network)"
            )

    def teleport(
        self, weights: Weights, generators: Generators, ground: Ground
    ) -> tuple[Weights, UnitReport]:
        """w -> exp(l) w, with a report.

        Args:
            weights: w, each [B, out, rest].
            generators: one diagonal t, [B, K], of any norm.
            ground: what is known of the network; it must know the hidden units.
        """
        units = ground.units
        assert units is not None
        (free,) = generators
        root = math.sqrt(units.count)
        t = self.limit(free[:, None] / root)[:, 0] * root
        moved, logs = units.scaled(t, weights)
        return moved, UnitReport(t, logs, weights)
