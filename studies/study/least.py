"""The least loss of a task where it is above 0, and losses as the excess over it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from metaopt.base.errors import UserError
from metaopt.base.fields import DTYPES
from metaopt.base.loss_statistics import clean
from metaopt.base.process import World
from metaopt.evaluation.config import EvalConfig
from metaopt.evaluation.evaluate import unseen_tasks
from metaopt.tasks.least_loss import least_loss, rank_bound

Array = NDArray[np.float64]

RESTARTS = 2
"""Of the second-order search where no closed form is known: more gained little."""


def least_losses(settings: EvalConfig) -> Array:
    """inf L of each test task, [tasks]; 0 where it is so by the number of units.

    In closed form where the samples are at most as many as the inputs, else the best that long
    second-order runs find (``metaopt.optimum``).

    Raises:
        UserError: where nothing is known of it.
    """
    task = settings.task
    if task.width >= min(task.outputs, task.samples) and task.samples <= task.inputs:
        return np.zeros(settings.tasks)
    if task.layers > 2:
        raise UserError(
            f"field families: the least loss is known for two layers, found {task.layers} layers"
        )
    tasks = unseen_tasks(settings, torch.device("cpu"), World())
    if task.samples <= task.inputs:
        return rank_bound(tasks).numpy()
    return least_loss(tasks, restarts=RESTARTS).loss.numpy()


def excess(losses: Array, least: Array, settings: EvalConfig) -> Array:
    """L - inf L, at least what the dtype can tell apart from 0: [steps + 1, tasks].

    Args:
        losses: [steps + 1, tasks].
        least: [tasks].
        settings: of the evaluation that gave them.
    """
    resolution = torch.finfo(DTYPES[settings.dtype]).eps * least
    return np.maximum(clean(losses) - least, resolution)
