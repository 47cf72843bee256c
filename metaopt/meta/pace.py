"""How fast a run goes, and when it will end."""

from __future__ import annotations

from collections import deque

RECENT = 50
"""Outer steps that count as recent."""


class Pace:
    """Speed and remaining time, from the recent outer steps and the last validation.

        seconds left = outer steps left * mean seconds of the recent ones
                     + validations left * seconds of the last one

    Args:
        total: outer steps of the run.
        every: outer steps between validations; one more follows the last outer step.
    """

    def __init__(self, total: int, every: int) -> None:
        self._total = total
        self._every = every
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._validation = 0.0

    def outer_step(self, trajectories: float, seconds: float) -> None:
        """Note an outer step: whole trajectories that it came to, and its wall clock."""
        self._recent.append((trajectories, seconds))

    def validation(self, seconds: float) -> None:
        """Note a validation's wall clock."""
        self._validation = seconds

    @property
    def trajectories_per_second(self) -> float:
        """Trajectories a second over the recent outer steps, without the time of validations."""
        trajectories, seconds = map(sum, zip(*self._recent, strict=True))
        return trajectories / seconds

    def seconds_left(self, outer_step: int) -> float:
        """After ``outer_step``, and before the validation that may belong to it."""
        steps = self._total - outer_step
        done, all_of_them = (outer_step - 1) // self._every, -(-self._total // self._every)
        mean = sum(seconds for _, seconds in self._recent) / len(self._recent)
        return steps * mean + (all_of_them - done) * self._validation
