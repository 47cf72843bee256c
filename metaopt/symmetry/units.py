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

from metaopt.network import Weights
from metaopt.symmetry.actions import InexactActionError
from metaopt.symmetry.generators import NormLimit
from metaopt.symmetry.guard import Generators
from metaopt.units import Units


class UnitData(Protocol):
    """What units are scaled on: ``Tasks``, or a model."""

    @property
    def units(self) -> Units | None:
        """The units, if there are any."""

    def seen_loss(self, weights: Weights) -> Tensor | None:
        """L(w) on the data at hand, [B]; None where it cannot be evaluated."""


@dataclass(frozen=True)
class UnitReport:
    """What one scaling of units did.

    Attributes:
        t: logarithms of the factors that were applied, [B, K].
        log_factors: l of each entry, shaped like the weights.
        norm: ||t||, [B]; without a graph, like what follows.
        drift: |L(g.w) - L(w)| / L(w) on the data at hand: of rounding alone; 0 where unknown.
        log_ratio: log L(g.w) / L(w), likewise.
    """

    t: Tensor
    log_factors: Weights
    norm: Tensor
    drift: Tensor
    log_ratio: Tensor


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
        factors = units.log_factors(t, weights)
        moved = tuple(log.exp() * W for log, W in zip(factors, weights, strict=True))
        factors = tuple(log.expand_as(W) for log, W in zip(factors, weights, strict=True))
        with torch.no_grad():
            before, after = data.seen_loss(weights), data.seen_loss(moved)
            zeros = t.new_zeros(len(t))
            drift, log_ratio = zeros, zeros
            if before is not None and after is not None:
                tiny = torch.finfo(before.dtype).tiny
                drift = (after - before).abs() / before.clamp(min=tiny)
                log_ratio = after.clamp(min=tiny).log() - before.clamp(min=tiny).log()
            norm = torch.linalg.vector_norm(t, dim=1)
        return moved, UnitReport(t, factors, norm, drift, log_ratio)
