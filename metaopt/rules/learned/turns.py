"""Which side of linear pairs a step serves: they take turns.

    odd steps (the first is 1): the side that reads, B;   even steps: the side that makes, A

One element g moves both sides of a pair, by g and by its inverse: the frame that is good for a step
of B is not the one that is good for A. So a teleporter makes them in turn, and an update rule steps
mostly on the side that is served. B comes first, since the gradient of A is 0 while B is.
"""

from __future__ import annotations

from torch import Tensor


def served(count: Tensor) -> Tensor:
    """The sign of the side that step ``count`` serves, as in ``LinearPairs.sides``."""
    return 1 - 2 * count.remainder(2)
