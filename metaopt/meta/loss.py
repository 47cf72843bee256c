"""Meta-losses: what the outer loop minimises over a truncation window."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class MetaLoss(ABC):
    """Losses of a window, L(w_t) and L(w_{t+1}) .. L(w_{t+K}): [B] and [K, B] -> scalar.

    All of them are means over trajectories: over processes they are averaged.
    """

    @abstractmethod
    def __call__(self, before: Tensor, losses: Tensor) -> Tensor:
        """The meta-loss.

        Args:
            before: L(w_t), where the window starts, [B]; a constant.
            losses: after each of its steps, [K, B].
        """


class SumOfLosses(MetaLoss):
    """Sum over the window, mean over trajectories, as in arXiv 2305.13404."""

    def __call__(self, before: Tensor, losses: Tensor) -> Tensor:
        """The meta-loss."""
        return losses.sum(0).mean()


class LogLoss(MetaLoss):
    """Mean of log(L + epsilon) over window and trajectories: every magnitude counts alike.

    The objective of Wichrowska et al., *Learned Optimizers that Scale and Generalize*, arXiv
    1703.04813, without its constant.

    Args:
        epsilon: the loss below which nothing is gained.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def __call__(self, before: Tensor, losses: Tensor) -> Tensor:
        """The meta-loss."""
        return (losses + self.epsilon).log().mean()


class LogOfLast(MetaLoss):
    """Mean of log(L(w_{t+K}) + epsilon) over trajectories: where the window ends, not the way.

    Args:
        epsilon: the loss below which nothing is gained.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def __call__(self, before: Tensor, losses: Tensor) -> Tensor:
        """The meta-loss."""
        return (losses[-1] + self.epsilon).log().mean()


class Normalised(MetaLoss):
    """Mean of (L + epsilon) / (L(w_t) + epsilon) over window and trajectories.

    Each task is measured by its own loss where the window starts: every magnitude counts alike, as
    with the log loss, but a window that lets its loss grow counts more than one that shrinks it.
    It is the ratio whose logarithm Wichrowska et al., arXiv 1703.04813, average, with the first
    loss of the window in the place of that of the trajectory.

    Args:
        epsilon: the loss below which nothing is gained.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def __call__(self, before: Tensor, losses: Tensor) -> Tensor:
        """The meta-loss."""
        return ((losses + self.epsilon) / (before + self.epsilon)).mean()
