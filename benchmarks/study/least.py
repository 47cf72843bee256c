"""The least loss of a task where it is above 0, and losses as the excess over it.

With two layers, s bijective and X of full column rank, H = s(W1 X) takes every value [k, N], so
that W2 H is any matrix of rank k at most. By Eckart and Young (1936) then

    inf L = 1/2 sum_{i > k} sigma_i(Y)^2,

which is 0 exactly if k is at least the rank of Y. No optimizer can be below it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from metaopt import build
from metaopt.distributed import World
from metaopt.errors import UserError
from metaopt.evaluate import unseen_tasks
from metaopt.schema import EvalConfig
from metaopt.statistics import clean

Array = NDArray[np.float64]


def least_losses(settings: EvalConfig) -> Array:
    """inf L of each test task, [tasks]; 0 where it is so by the number of units.

    Raises:
        UserError: where nothing is known of it.
    """
    task = settings.task
    if task.width >= min(task.outputs, task.samples) and task.samples <= task.inputs:
        return np.zeros(settings.tasks)
    if task.layers > 2 or task.samples > task.inputs:
        raise UserError(
            f"field families: the least loss is known for two layers and at most as many samples "
            f"as inputs, found {task.layers} layers, {task.samples} samples, {task.inputs} inputs"
        )
    tasks = unseen_tasks(settings, torch.device("cpu"), World())
    singular = torch.linalg.svdvals(tasks.Y.double())
    return (0.5 * singular[:, task.width :].square().sum(-1)).numpy()


def excess(losses: Array, least: Array, settings: EvalConfig) -> Array:
    """L - inf L, at least what the dtype can tell apart from 0: [steps + 1, tasks].

    Args:
        losses: [steps + 1, tasks].
        least: [tasks].
        settings: of the evaluation that gave them.
    """
    resolution = torch.finfo(build.DTYPES[settings.dtype]).eps * least
    return np.maximum(clean(losses) - least, resolution)
