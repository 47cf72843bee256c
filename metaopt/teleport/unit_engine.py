"""Positive scaling of single hidden units, on parameters of any shape: exact on any data.

    w -> exp(l) w,   l the sum of +-t_i over the units i that an entry makes or reads (``units``)

the diagonal part of the general linear group. Gradients move by exp(-l), their squares by
exp(-2 l): by the inverse transpose of the action's differential. On mini-batches no larger part of
the group leaves the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.symmetry.actions import InexactActionError
from metaopt.symmetry.limits import NormLimit
from metaopt.symmetry.units import Units
from metaopt.teleport.guard import Generators


class UnitData(Protocol):
    """What units are scaled on: ``Tasks``, or a model."""

    @property
    def units(self) -> Units | None:
        """The units, if there are any."""


@dataclass(frozen=True)
class UnitReport:
    """What one scaling of units did.

    Attributes:
        t: logarithms of the factors that were applied, [B, K].
        log_factors: l of each entry, shaped like the weights.
        before: the weights before it.
    """

    t: Tensor
    log_factors: Weights
    before: Weights

    @property
    def norm(self) -> Tensor:
        """||t||, [B], without a graph."""
        return torch.linalg.vector_norm(self.t.detach(), dim=1)


class UnitEngine:
    """Scales hidden units: w -> exp(l) w, with sqrt(mean t^2) within a limit.

    Args:
        limit: of the norm of t / sqrt(K), the root mean square over units, so that it means the
            same at any width.
    """

    needs_network = False

    def __init__(self, limit: NormLimit) -> None:
        self.limit = limit

    def check(self, data: UnitData, weights: Weights) -> None:
        """Raise ``InexactActionError`` where no symmetries are known."""
        if data.units is None:
            raise InexactActionError(
                "scaling hidden units needs to know them: a family of your own lists them as "
                "symmetries = metaopt.symmetries(its network)"
            )

    def teleport(
        self, weights: Weights, generators: Generators, data: UnitData
    ) -> tuple[Weights, UnitReport]:
        """w -> g.w, with a report.

        Args:
            weights: each [B, out, rest].
            generators: one, the diagonal t, [B, K], of any norm.
            data: whose units they are.
        """
        units = data.units
        assert units is not None
        (free,) = generators
        root = math.sqrt(units.count)
        t = self.limit(free[:, None] / root)[:, 0] * root
        moved, logs = units.scaled(t, weights)
        return moved, UnitReport(t, logs, weights)
