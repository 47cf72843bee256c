"""Makes a task family from the section ``task`` of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaopt.tasks import own
from metaopt.tasks.base import TaskFamily
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.own_batch import LossFamily
from metaopt.tasks.regression import RegressionFamily


def task_family(config: TaskConfig) -> TaskFamily[Any]:
    """The task family of a configuration: ``RegressionFamily``, or ``LossFamily`` of your class.

    The field ``more`` is not read here; ``meta.build.training_tasks`` reads it.

    Args:
        config: the section ``task``.

    Raises:
        UserError: one line, if a class of the user's is missing or does not work as a family.
    """
    if not config.is_own:
        return RegressionFamily(config)
    return _own_family(config.family, config.options or {}, "task.options")


def _own_family(name: str, options: Mapping[str, Any], field: str) -> LossFamily:
    """A user's family, checked on two tasks."""
    family = LossFamily(own.make(name, options, field), name)
    family.check()
    return family
