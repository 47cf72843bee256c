"""Meta-gradients against central differences of the meta-loss."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.meta.looks import Observe, first_order
from metaopt.meta.loss import LogLoss
from metaopt.meta.unroll import start, unroll
from metaopt.rules.composed import MetaOptimizer
from metaopt.tasks.base import Observation, Tasks
from metaopt.teleport.base import Report

STEPS = 5


class Replay:
    """Losses of the weights at hand, but observations recorded before: features as constants."""

    def __init__(self) -> None:
        self.recorded: list[Observation] = []
        self._pending: Iterator[Observation] | None = None

    def record(
        self,
        tasks: Tasks,
        weights: Weights,
        report: Report | None = None,
        evaluated: Weights | None = None,
    ) -> tuple[Tensor, Observation]:
        loss, observation = first_order(tasks, weights, report)
        self.recorded.append(observation)
        return loss, observation

    def rewind(self) -> None:
        self._pending = iter(self.recorded)

    def replay(
        self,
        tasks: Tasks,
        weights: Weights,
        report: Report | None = None,
        evaluated: Weights | None = None,
    ) -> tuple[Tensor, Observation]:
        assert self._pending is not None
        return tasks.loss(weights), next(self._pending)


def meta_loss(optimizer: MetaOptimizer, tasks: Tasks, observe: Observe) -> Tensor:
    _, unrolled = unroll(tasks, optimizer, start(tasks, optimizer, observe), STEPS, observe)
    return LogLoss(1e-9)(tasks.loss(tasks.initial), unrolled.losses)


def assert_matches_differences(optimizer: MetaOptimizer, evaluate: object) -> None:
    """Central differences of ``evaluate`` along random directions of each parameter."""
    assert callable(evaluate)
    generator = torch.Generator().manual_seed(3)
    checked = 0
    for name, parameter in optimizer.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        analytic = float((parameter.grad * direction).sum())
        step = 1e-5
        with torch.no_grad():
            parameter.add_(step * direction)
            above = float(evaluate())
            parameter.sub_(2 * step * direction)
            below = float(evaluate())
            parameter.add_(step * direction)
        assert analytic == pytest.approx((above - below) / (2 * step), rel=2e-5, abs=2e-8), name
        checked += abs(analytic) > 1e-6
    assert checked > 5
