"""How long trajectories are, and where their truncation windows end.

A trajectory of n inner steps is cut into windows; an outer step is one of them. Lengths are chosen
such that an outer step costs K inner steps of each trajectory on average, whatever the choice: the
budgets of runs that differ in it alone are equal. All is drawn by the number of the meta-batch of
trajectories, alike in every process.

References: Chen et al., *Training Stronger Baselines for Learning to Optimize*, arXiv 2010.09089
(horizons that grow); Wichrowska et al., *Learned Optimizers that Scale and Generalize*, arXiv
1703.04813 (random, heavy-tailed horizons); Tallec and Ollivier, *Unbiasing Truncated
Backpropagation Through Time*, arXiv 1705.08209 (random truncation, there with weights).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from metaopt.base.streams import Stream, uniforms


class Horizon(ABC):
    """The length of trajectories."""

    @abstractmethod
    def steps(self, done: float, draw: float) -> int:
        """n.

        Args:
            done: outer steps taken / outer steps of the run, where the trajectories begin.
            draw: uniform on [0, 1).
        """


@dataclass(frozen=True)
class Fixed(Horizon):
    """n = N.

    Args:
        longest: N.
    """

    longest: int

    def steps(self, done: float, draw: float) -> int:
        """N, the full length."""
        return self.longest


@dataclass(frozen=True)
class Curriculum(Horizon):
    """n = first (N / first)^min(1, done / share): grows to N over the first part of the run.

    Args:
        longest: N.
        window: K; n is a whole number of windows, at least one and within N.
        first: n at the beginning.
        share: the part of the run that it takes.
    """

    longest: int
    window: int
    first: int
    share: float

    def steps(self, done: float, draw: float) -> int:
        """n at this point of the run."""
        return _between(self.first, self.longest, min(1.0, done / self.share), self.window)


@dataclass(frozen=True)
class LogUniform(Horizon):
    """log n uniform between log low and log N.

    Args:
        longest: N.
        window: K; n is a whole number of windows, at least one and within N.
        low: the least n.
    """

    longest: int
    window: int
    low: int

    def steps(self, done: float, draw: float) -> int:
        """n of this draw."""
        return _between(self.low, self.longest, draw, self.window)


def _between(low: int, high: int, part: float, window: int) -> int:
    """low (high / low)^part in whole windows, but at most ``high``, also where low is above it."""
    low = min(low, high)
    wanted: float = low * (high / low) ** part
    return min(high, window * max(1, round(wanted / window)))


class Truncation(ABC):
    """Where the windows of a trajectory end."""

    @abstractmethod
    def windows(self, steps: int, draws: Sequence[float]) -> list[int]:
        """The lengths of the windows.

        Args:
            steps: n, their sum.
            draws: uniform on [0, 1), at least one for two windows.
        """


@dataclass(frozen=True)
class Even(Truncation):
    """K, K, .. and what is left.

    Args:
        window: K.
    """

    window: int

    def windows(self, steps: int, draws: Sequence[float]) -> list[int]:
        """The lengths of the windows."""
        whole, left = divmod(steps, self.window)
        return [self.window] * whole + [left] * (left > 0)


@dataclass(frozen=True)
class Whole(Truncation):
    """One window: the trajectory to its end, whose meta-gradient nothing truncates.

    Args:
        window: K, which says nothing here; an outer step costs as many steps as a trajectory has.
    """

    window: int

    def windows(self, steps: int, draws: Sequence[float]) -> list[int]:
        """n."""
        return [steps]


@dataclass(frozen=True)
class RandomPairs(Truncation):
    """K + d, K - d, .. with d uniform on the integers between -K/2 and K/2, and what is left.

    Each length is uniform between K/2 and 3K/2, and there are as many windows as there would be
    even ones.

    Args:
        window: K.
    """

    window: int

    def windows(self, steps: int, draws: Sequence[float]) -> list[int]:
        """The lengths of the windows."""
        K, half = self.window, self.window // 2
        pairs, left = divmod(steps, 2 * K)
        lengths = []
        for draw in draws[:pairs]:
            shift = int(draw * (2 * half + 1)) - half
            lengths += [K + shift, K - shift]
        return lengths + Even(K).windows(left, ())


@dataclass(frozen=True)
class Lengths:
    """The windows of each meta-batch of trajectories of a run.

    Args:
        horizon: how long they are.
        truncation: how they are cut.
        longest: N.
        seed: the seed of the draws.
    """

    horizon: Horizon
    truncation: Truncation
    longest: int
    seed: int

    def windows(self, number: int, done: float) -> list[int]:
        """The lengths of the windows, in order.

        Args:
            number: the number of the meta-batch of trajectories, from 0.
            done: outer steps taken / outer steps of the run.
        """
        # One draw for the length, and one for each pair of windows of at least one step.
        draws = uniforms(Stream.HORIZON, self.seed, number, 1, 1 + self.longest // 2)[0].tolist()
        return self.truncation.windows(self.horizon.steps(done, draws[0]), draws[1:])
