"""Guards: what happens to a teleport that changes the network's outputs.

    drift = ||f(g.w) - f(w)||_F / (||f(w)||_F + ||Y||_F)

The drift is relative to the size of outputs and targets. Relative to the loss it would grow without
bound as the loss falls to 0. A drift that is not finite exceeds every tolerance.
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
        before: f(w), [B, m, N].
        after: f(g.w), [B, m, N].
        target_norm: ||Y||_F, [B]; zeros if the targets are not known.
    """
    moved = torch.linalg.matrix_norm(after - before)
    scale = torch.linalg.matrix_norm(before) + target_norm
    # If outputs and targets are 0, the scale is 0: avoid 0 / 0.
    return moved / scale.clamp(min=torch.finfo(scale.dtype).tiny)


@dataclass(frozen=True)
class Guarded:
    """A teleport after its guard.

    Attributes:
        weights: g.w of tasks whose teleport was let through, w of tasks whose was refused.
        drift: the drift of what was applied, [B]; 0 if refused.
        refused: bool [B].
        scale: the factor on the generators, [B]; below 1 if the guard shrank them.
    """

    weights: Weights
    drift: Tensor
    refused: Tensor
    scale: Tensor


class Guard(ABC):
    """Decides, for each trajectory by itself, whether and how far to teleport."""

    @abstractmethod
    def __call__(
        self,
        weights: Weights,
        generators: Generators,
        move: Callable[[Weights, Generators], Weights],
        drift_of: Callable[[Weights], Tensor],
    ) -> Guarded:
        """Teleport under the guard.

        Args:
            weights: w, each [B, out, in].
            generators: one for each pair of adjacent layers, each [B, k_l, k_l].
            move: the function (w, generators) -> g.w.
            drift_of: the function g.w -> drift [B], without a graph.
        """


class Unguarded(Guard):
    """Lets every teleport through, and still measures its drift."""

    def __call__(
        self,
        weights: Weights,
        generators: Generators,
        move: Callable[[Weights, Generators], Weights],
        drift_of: Callable[[Weights], Tensor],
    ) -> Guarded:
        """Teleport and measure the drift."""
        moved = move(weights, generators)
        measured = drift_of(moved)
        nothing = torch.zeros_like(measured, dtype=torch.bool)
        return Guarded(moved, measured, nothing, torch.ones_like(measured))


class Refuse(Guard):
    """Leaves the weights as they are if the drift exceeds the tolerance.

    Args:
        tolerance: the largest drift that is let through.
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
        """Teleport, measure the drift, and undo the teleports that exceed the tolerance."""
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
    """Scales down the generators of a teleport that drifts too far; refuses it if that fails.

        T -> T tolerance / (2 d)   if the drift d of a trial exceeds the tolerance

    This is enough if drift grows linearly in T or faster, as it does near the identity. It costs
    one more action a step, and does not wait for the device.

    Args:
        tolerance: the largest drift that is let through.
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
        """Measure a trial's drift, scale the generators, teleport, refuse what still drifts."""
        with torch.no_grad():
            trial = drift_of(move(weights, generators))
            shrunk = torch.nan_to_num(self.tolerance / (2 * trial), nan=0.0, posinf=0.0)
            scale = torch.where(trial <= self.tolerance, 1.0, shrunk)
        scaled = tuple(T * scale[:, None, None] for T in generators)
        return replace(Refuse(self.tolerance)(weights, scaled, move, drift_of), scale=scale)
