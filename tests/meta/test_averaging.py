"""The average of phi: its closed form, and its place in a run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_config
from torch import Tensor

from metaopt import load
from metaopt.base import checkpoint
from metaopt.meta import build
from metaopt.meta.averaging import ExponentialAverage
from metaopt.meta.trainer import MetaTrainer
from metaopt.rules.composed import MetaOptimizer
from metaopt.tasks.regression import TaskBatch

CPU = torch.device("cpu")


def phi(optimizer: MetaOptimizer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in optimizer.parameters()])


def trainer(**meta: Any) -> MetaTrainer:
    return MetaTrainer(tiny_config(dtype="float64", **meta), CPU)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_it_is_the_weighted_mean_of_the_iterates(decay: float) -> None:
    run = trainer(average=decay)
    iterates: list[Tensor] = []
    for t in range(1, 5):
        run.outer_step()
        iterates.append(phi(run.optimizer))
        weights = torch.tensor([decay ** (t - i) for i in range(1, t + 1)], dtype=torch.float64)
        wanted = (weights[:, None] * torch.stack(iterates)).sum(0) / weights.sum()
        torch.testing.assert_close(phi(run.average.optimizer), wanted, rtol=1e-12, atol=1e-14)


def test_training_goes_on_with_the_raw_phi() -> None:
    plain, averaged = trainer(), trainer(average=0.9)
    while not plain.finished:
        assert plain.outer_step() == averaged.outer_step()
    assert torch.equal(phi(plain.optimizer), phi(averaged.optimizer))
    assert plain.average.optimizer is plain.optimizer


def test_a_skipped_step_is_not_in_it() -> None:
    run = trainer(average=0.5)
    run.outer_step()
    before = phi(run.average.optimizer)
    assert isinstance(run.tasks, TaskBatch)
    run.tasks.X.fill_(torch.inf)
    assert run.outer_step().skipped
    assert torch.equal(phi(run.average.optimizer), before)


def test_the_average_is_validated_and_written(tmp_path: Path) -> None:
    run = trainer(average=0.9)
    for _ in range(3):
        run.outer_step()
    checkpoint.write(tmp_path / "rule.safetensors", run.checkpoint({}))
    mean = phi(run.average.optimizer)
    assert torch.equal(phi(load(tmp_path / "rule.safetensors").optimizer), mean)
    assert not torch.equal(mean, phi(run.optimizer))
    found = run.validate().losses
    run.optimizer.load_state_dict(run.average.optimizer.state_dict())
    run.average = build.average(tiny_config().meta, run.optimizer)
    assert torch.equal(found, run.validate().losses)


def test_it_resumes_to_the_same_bits() -> None:
    whole, first, rest = (trainer(average=0.9) for _ in range(3))
    for _ in range(3):
        whole.outer_step()
        first.outer_step()
    rest.restore(copy.deepcopy(first.state()))
    whole.outer_step()
    rest.outer_step()
    assert torch.equal(phi(rest.optimizer), phi(whole.optimizer))
    assert torch.equal(phi(rest.average.optimizer), phi(whole.average.optimizer))
    assert isinstance(rest.average, ExponentialAverage)
