"""Meta-losses: what the outer loop minimises over a truncation window."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class MetaLoss(ABC):
    """Losses of a window, l(L(w_{t+1})) .. l(L(w_{t+K})): [K, B] -> scalar."""

    @abstractmethod
    def __call__(self, losses: Tensor) -> Tensor:
        """The meta-loss."""


class SumOfLosses(MetaLoss):
    """Sum over the window, mean over trajectories, as in arXiv 2305.13404."""

    def __call__(self, losses: Tensor) -> Tensor:
        """The meta-loss."""
        return losses.sum(0).mean()


class LogLoss(MetaLoss):
    """Mean of log(L + epsilon) over window and trajectories: every magnitude counts alike.

    Args:
        epsilon: the loss below which nothing is gained.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def __call__(self, losses: Tensor) -> Tensor:
        """The meta-loss."""
        return (losses + self.epsilon).log().mean()
