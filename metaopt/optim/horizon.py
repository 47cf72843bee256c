"""The one line where the steps of a learned optimizer leave what its rule was seen to do.

The count is with the groups (``memory``): it is said once in the life of a training, resumed or
not, by the step that goes past the horizon.
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
