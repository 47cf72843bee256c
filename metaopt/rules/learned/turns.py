"""Which side of linear pairs a step serves: they take turns.

    odd turns (the first is 1): the side that reads, B;   even turns: the side that makes, A
    turn of step t = 1, 2, ..:  floor((t - 1) / every) + 1

A teleport comes with the first step of a turn, of ``every`` steps, the frame stays for the rest.
One element g moves both sides of a pair, by g and by its inverse: the frame that is good for a step
of B is not the one that is good for A. So a teleporter makes them in turn, and an update rule steps
mostly on the side that is served. B comes first, since the gradient of A is 0 while B is.
"""

from __future__ import annotations

from torch import Tensor


def served(count: Tensor, every: int) -> Tensor:
    """The sign of the side that step ``count`` serves, as in ``LinearPairs.sides``."""
    turn = (count - 1).div(every, rounding_mode="floor") + 1
    return 1 - 2 * turn.remainder(2)


def begins(count: Tensor, every: int) -> Tensor:
    """Whether step ``count`` is the first of a turn."""
    return (count - 1).remainder(every) == 0
