"""How many steps a rival needs to a loss, from what it has after several numbers of them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def steps_needed(loss: float, steps: Sequence[int], losses: Sequence[float]) -> float | None:
    """The first number of steps after which the loss is at most this.

    Between two numbers of steps the logarithm of the loss is linear in that of the steps.

    Args:
        loss: that is to be reached.
        steps: increasing.
        losses: after each of them, above 0.

    Returns:
        The first of ``steps`` if its loss is as low already; None if none of them reaches it.
    """
    if losses[0] <= loss:
        return float(steps[0])
    before = zip(steps, losses, strict=True)
    after = zip(steps[1:], losses[1:], strict=True)
    for (s, a), (t, b) in zip(before, after, strict=False):
        if b <= loss:
            share = math.log(a / loss) / math.log(a / b)
            return s * (t / s) ** share
    return None
