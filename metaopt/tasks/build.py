"""One way to make a task family from the section ``task`` of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaopt.tasks import own
from metaopt.tasks.base import TaskFamily
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.own_batch import LossFamily
from metaopt.tasks.regression import RegressionFamily


def task_family(config: TaskConfig) -> TaskFamily[Any]:
    """The task family of a configuration: of ``TaskBatch``, or of ``LossTasks`` of a user's class.

    What is in ``more`` is for ``training_tasks`` alone.

    Raises:
        UserError: one line, where a user's class is not there or does not keep the protocol.
    """
    if not config.is_own:
        return RegressionFamily(config)
    return _own_family(config.family, config.options or {}, "task.options")


def _own_family(name: str, options: Mapping[str, Any], field: str) -> LossFamily:
    """A user's family, checked."""
    family = LossFamily(own.make(name, options, field), name)
    family.check()
    return family
