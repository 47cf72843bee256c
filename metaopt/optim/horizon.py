"""Warns, once, when a learned optimizer goes on past the steps its rule was trained or tested for.

The number of steps is kept with the groups (``memory``), so the warning comes once in a training,
resumed or not, from the first step past the horizon.
"""

from __future__ import annotations

import warnings

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
