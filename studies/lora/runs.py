"""One inner loop for all: a user's own, and the same of a stack."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from metaopt.optim.finite import NonFiniteError
from studies.lora.contenders import Contender, Point
from studies.lora.hand_made import Number
from studies.lora.stack import Stack
from studies.lora.task import SHIFTS, Images, Setting, Task, batches, images, losses, task


@dataclass(frozen=True)
class Tasks:
    """The tasks of all seeds, and their images."""

    setting: Setting
    tasks: list[Task]
    images: Images

    @classmethod
    def of(cls, setting: Setting, seeds: int) -> Tasks:
        """Of the seeds 0, 1, ..."""
        made = [task(setting, seed) for seed in range(seeds)]
        return cls(setting, made, images(SHIFTS[setting.shift]))

    def rows(self, seed: int, steps: int) -> Tensor:
        """Mini-batches of a seed, [steps, batch]."""
        return batches(len(self.images.y), steps, self.setting.batch, seed)


def cosine(step: int, steps: int) -> float:
    """The share of the rate at a step, counted from 0: from 1 down to 0 over ``steps``."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def judged(model: nn.Module, optimizer: Optimizer, X: Tensor, y: Tensor) -> Tensor:
    """The losses on images, of averaged weights where the optimizer has such."""
    averages = hasattr(optimizer, "eval")
    if averages:
        optimizer.eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        found = losses(model, X, y)
    if averages:
        optimizer.train()  # type: ignore[attr-defined]
    return found


def train(
    model: nn.Module,
    optimizer: Optimizer,
    shifted: Images,
    rows: Tensor,
    marks: Sequence[int],
    told: bool,
) -> Tensor:
    """Losses on the images kept apart, after each of the steps ``marks``: [marks, ..].

    Args:
        model: a network, or a stack of M.
        optimizer: of its factors.
        shifted: the images.
        rows: of the mini-batches, [steps, batch], or [steps, M, batch].
        marks: steps; 0 is before the first one.
        told: whether the rate follows a cosine over all steps.

    Returns:
        Infinite from where the optimizer has raised an error about numbers.
    """
    members = rows.shape[1:-1]
    X, y = (x.expand(*members, *x.shape) for x in (shifted.X_apart, shifted.y_apart))
    found = torch.full((len(marks), *members), math.inf)
    rates: list[Number] = [group["lr"] for group in optimizer.param_groups]
    for step in range(len(rows) + 1):
        if step in marks:
            found[marks.index(step)] = judged(model, optimizer, X, y)
        if step == len(rows):
            break
        if told:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * cosine(step, len(rows))
        optimizer.zero_grad()
        losses(model, shifted.X[rows[step]], shifted.y[rows[step]]).sum().backward()
        try:
            optimizer.step()
        except (NonFiniteError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            break
    return found


def together(
    tasks: Tasks,
    contender: Contender,
    points: Sequence[Point],
    seeds: Sequence[int],
    steps: int,
    marks: Sequence[int],
) -> NDArray[np.float64]:
    """Losses of all points and seeds side by side, [marks, points, seeds]."""
    stack = Stack([tasks.tasks[seed] for seed in seeds], len(points))
    values: dict[str, Number] = {
        key: torch.tensor([point[key] for point in points]).repeat_interleave(len(seeds))[
            :, None, None
        ]
        for key in points[0]
    }
    rows = torch.stack([tasks.rows(seed, steps) for seed in seeds] * len(points), 1)
    optimizer = contender.make(stack, values)
    found = train(stack, optimizer, tasks.images, rows, marks, contender.told)
    return found.double().reshape(len(marks), len(points), len(seeds)).numpy()


def alone(
    tasks: Tasks, contender: Contender, point: Point, seed: int, steps: int, marks: Sequence[int]
) -> list[float]:
    """Losses of one point and seed at the marks."""
    model = tasks.tasks[seed].model()
    optimizer = contender.make(model, dict(point))
    rows = tasks.rows(seed, steps)
    return train(model, optimizer, tasks.images, rows, marks, contender.told).tolist()


def seconds_per_step(tasks: Tasks, contender: Contender, steps: int) -> float:
    """The median time of a step of one adaptation, forward and backward pass included."""
    model, rows = tasks.tasks[0].model(), tasks.rows(0, steps)
    optimizer = contender.make(model, dict(contender.grid[0]))
    taken = []
    for chosen in rows:
        began = time.perf_counter()
        optimizer.zero_grad()
        losses(model, tasks.images.X[chosen], tasks.images.y[chosen]).backward()
        optimizer.step()
        taken.append(time.perf_counter() - began)
    return median(taken)
