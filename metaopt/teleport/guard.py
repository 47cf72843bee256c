"""Guards: what happens to a teleport that moves the network's output.

    drift = ||f(g.w) - f(w)||_F / (||f(w)||_F + ||Y||_F)

It is relative to the size of outputs and targets, not to the loss: relative to a loss that falls to
0 it would explode. A non-finite drift passes no tolerance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.teleport.base import Generators


def drift(before: Tensor, after: Tensor, target_norm: Tensor) -> Tensor:
    """||f(g.w) - f(w)||_F / (||f(w)||_F + ||Y||_F), [B].

    Args:
        before: f(w) [B, m, N].
        after: f(g.w) [B, m, N].
        target_norm: ||Y||_F [B]; zeros where the targets are not known.
    """
    moved = torch.linalg.matrix_norm(after - before)
    scale = torch.linalg.matrix_norm(before) + target_norm
    # Outputs and targets that vanish leave nothing to compare with.
    return moved / scale.clamp(min=torch.finfo(scale.dtype).tiny)


@dataclass(frozen=True)
class Guarded:
    """A teleport after its guard.

    Attributes:
        weights: g.w where the teleport was let through, w where it was refused.
        drift: of what was let through, [B]; 0 where refused.
        refused: bool [B].
        scale: factor on the generators, below 1 where shrunk, [B].
    """

    weights: Weights
    drift: Tensor
    refused: Tensor
    scale: Tensor


class Guard(ABC):
    """Decides, for each trajectory apart, whether and how far to teleport."""

    @abstractmethod
    def __call__(
        self,
        weights: Weights,
        generators: Generators,
        move: Callable[[Weights, Generators], Weights],
        drift_of: Callable[[Weights], Tensor],
    ) -> Guarded:
        """Teleport under guard.

        Args:
            weights: w.
            generators: one for each adjacent pair of layers.
            move: (w, generators) -> g.w.
            drift_of: g.w -> drift [B], without a graph.
        """


class Unguarded(Guard):
    """Lets everything through; the drift is measured all the same."""

    def __call__(
        self,
        weights: Weights,
        generators: Generators,
        move: Callable[[Weights, Generators], Weights],
        drift_of: Callable[[Weights], Tensor],
    ) -> Guarded:
        """Teleport, measure, refuse nothing."""
        moved = move(weights, generators)
        measured = drift_of(moved)
        nothing = torch.zeros_like(measured, dtype=torch.bool)
        return Guarded(moved, measured, nothing, torch.ones_like(measured))


class Refuse(Guard):
    """Leaves the weights where they are if the drift passes the tolerance.

    Args:
        tolerance: the largest drift to let through.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def __call__(
        self,
        weights: Weights,
        generators: Generators,
        move: Callable[[Weights, Generators], Weights],
        drift_of: Callable[[Weights], Tensor],
    ) -> Guarded:
        """Teleport, measure, undo what drifted too far."""
        moved = move(weights, generators)
        measured = drift_of(moved)
        # Written so that NaN is refused.
        refused = ~(measured <= self.tolerance)
        kept = tuple(
            torch.where(refused[:, None, None], old, new)
            for old, new in zip(weights, moved, strict=True)
        )
        let_through = torch.where(refused, 0.0, measured)
        return Guarded(kept, let_through, refused, torch.ones_like(measured))


class Shrink(Guard):
    """Scales down the generators of a teleport that drifts too far, and refuses it if that fails.

    A trial with drift d is repeated once, with the generators times tolerance / (2 d): enough where
    drift grows linearly or faster, as it does near the identity. One more action a step; no waiting
    for the device.

    Args:
        tolerance: the largest drift to let through.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def __call__(
        self,
        weights: Weights,
        generators: Generators,
        move: Callable[[Weights, Generators], Weights],
        drift_of: Callable[[Weights], Tensor],
    ) -> Guarded:
        """Try, scale, teleport, refuse."""
        with torch.no_grad():
            trial = drift_of(move(weights, generators))
            shrunk = torch.nan_to_num(self.tolerance / (2 * trial), nan=0.0, posinf=0.0)
            scale = torch.where(trial <= self.tolerance, 1.0, shrunk)
        scaled = tuple(T * scale[:, None, None] for T in generators)
        return replace(Refuse(self.tolerance)(weights, scaled, move, drift_of), scale=scale)
