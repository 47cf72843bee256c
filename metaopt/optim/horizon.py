"""How many steps there will be, and a warning past those that a rule was trained or tested for.

The number of steps is kept with the groups (``memory``), so the warning comes once in a training,
resumed or not, from the first step past the horizon.
"""

from __future__ import annotations

import warnings
from typing import Any

from metaopt.optim.learned import LearnedRule
from metaopt.optim.reach import PAGE, PastHorizonWarning


def tell_horizon(rule: LearnedRule, step: int) -> None:
    """Warn at the first step past the rule's reach; ``step`` counts from 1."""
    if step == rule.reach.steps + 1:
        warnings.warn(
            f"{rule.name}: step {step:,} is past its horizon: it was {rule.reach}; what it does "
            f"from here on was never seen, watch the loss: {PAGE}",
            PastHorizonWarning,
            stacklevel=5,
        )


def checked(horizon: Any) -> int | None:
    """The steps that there will be, or None; raises ``ValueError`` for anything else."""
    if horizon is not None and (type(horizon) is not int or horizon < 1):
        raise ValueError(
            f"horizon: found {horizon!r}, expected the whole number of steps that there will be, "
            f"or None where nobody knows"
        )
    return horizon
