"""How many steps there will be, and a warning past those that were told, trained or tested for.

The number of steps is kept with the groups (``memory``), so the warning comes once in a training,
resumed or not, from the first step past the horizon.
"""

from __future__ import annotations

import warnings
from typing import Any

from metaopt.base.shipped import DEFAULT
from metaopt.optim.learned import LearnedRule
from metaopt.optim.reach import PAGE, PastHorizonWarning
from metaopt.optim.told import reads


class HorizonWatch:
    """Warns at the first step past a rule's reach, and past what it was told.

    Args:
        rule: the rule.
    """

    def __init__(self, rule: LearnedRule) -> None:
        self._rule = rule
        self._said: int | None = None

    def tell(self, step: int, told: int | None) -> None:
        """Warn if there is something new to say.

        Args:
            step: the number of this step, from 1.
            told: the steps that there were to be, or None. It may have changed since.
        """
        rule = self._rule
        if told is not None and step > told and told != self._said and hears(rule):
            self._said = told
            warnings.warn(
                f"horizon: step {step:,} is past the {told:,} that {rule.name} was told: its steps "
                f"end there, and from here on weights hardly move; set optimizer.horizon to what "
                f"is true, or to None",
                PastHorizonWarning,
                stacklevel=5,
            )
        if step == rule.reach.steps + 1:
            warnings.warn(
                f"{rule.name}: step {step:,} is past its horizon: it was {rule.reach}; what it "
                f"does from here on was never seen, watch the loss: {PAGE}",
                PastHorizonWarning,
                stacklevel=5,
            )


def hears(rule: LearnedRule) -> bool:
    """Whether a rule hears how many steps are left."""
    return reads("left", rule.optimizer.rules.values())


def heard(horizon: Any, rule: LearnedRule) -> int | None:
    """``checked``, with a warning if the rule does not hear of it."""
    if checked(horizon) is not None and not hears(rule):
        warnings.warn(
            f"horizon: {rule.name} does not hear how many steps there will be: leave it out, or "
            f"take {DEFAULT}",
            stacklevel=3,
        )
    return checked(horizon)


def checked(horizon: Any) -> int | None:
    """The steps that there will be, or None; raises ``ValueError`` for anything else."""
    if horizon is not None and (type(horizon) is not int or horizon < 1):
        raise ValueError(
            f"horizon: found {horizon!r}, expected the whole number of steps that there will be, "
            f"or None where nobody knows"
        )
    return horizon
