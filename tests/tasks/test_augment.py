"""Rescaled training tasks: the factors, the streams, and who sees them."""

from __future__ import annotations

import math

import pytest
import torch
from support import tiny_config

from metaopt.base.streams import Stream
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from metaopt.tasks.regression import RegressionFamily, TaskBatch
from metaopt.tasks.variations import Rescaled

CONFIG = tiny_config(dtype="float64", rescale=2.0)
FAMILY = RegressionFamily(CONFIG.task)
RANGE = 2.0


def draw(
    start: int = 0, count: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[TaskBatch, TaskBatch]:
    """Tasks as they are, and rescaled."""
    given = (Stream.TRAIN, 3, start, count, dtype)
    return FAMILY.sample(*given), Rescaled(FAMILY, RANGE).sample(*given)


def log_factors(plain: TaskBatch, scaled: TaskBatch) -> torch.Tensor:
    """[B, 2 + L]; asserts that each tensor is a multiple of what it was."""
    found = []
    pairs = zip(
        (plain.X, plain.Y, *plain.initial), (scaled.X, scaled.Y, *scaled.initial), strict=True
    )
    for before, after in pairs:
        ratios = (after / before).flatten(1)
        torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios), rtol=1e-12, atol=0)
        found.append(ratios[:, 0].log())
    return torch.stack(found, dim=1)


def test_each_tensor_of_each_task_has_a_factor_of_its_own_in_the_range() -> None:
    logs = log_factors(*draw(count=500))
    assert logs.shape == (500, 4)
    assert float(logs.abs().max()) <= RANGE
    assert logs.flatten().unique().numel() == logs.numel()
    # Uniform on [-r, r): mean 0, standard deviation r / sqrt(3).
    error = RANGE / math.sqrt(3 * logs.numel())
    assert abs(float(logs.mean())) < 4 * error
    assert float(logs.std()) == pytest.approx(RANGE / math.sqrt(3), rel=0.05)


def test_a_task_is_the_same_in_every_batch() -> None:
    _, whole = draw(0, 6)
    _, part = draw(2, 3)
    for one, other in zip((whole.X, *whole.initial), (part.X, *part.initial), strict=True):
        assert torch.equal(one[2:5], other)
    _, single = draw(0, 6, torch.float32)
    assert torch.equal(single.Y, whole.Y.float())


def test_training_tasks_are_rescaled_and_no_others() -> None:
    run, plain = (MetaTrainer(config, torch.device("cpu")) for config in (CONFIG, without()))
    assert torch.equal(run.validation_tasks.X, plain.validation_tasks.X)
    run.outer_step()
    plain.outer_step()
    assert isinstance(run.tasks, TaskBatch)
    assert isinstance(plain.tasks, TaskBatch)
    assert float(log_factors(plain.tasks, run.tasks).abs().min()) > 0
    assert isinstance(plain.training_tasks, RegressionFamily)


def without() -> TrainConfig:
    return tiny_config(dtype="float64")


def test_it_resumes_on_the_same_tasks() -> None:
    first, rest = (MetaTrainer(CONFIG, torch.device("cpu")) for _ in range(2))
    first.outer_step()
    rest.restore(first.state())
    assert isinstance(first.tasks, TaskBatch)
    assert isinstance(rest.tasks, TaskBatch)
    assert torch.equal(first.tasks.Y, rest.tasks.Y)
    assert first.outer_step() == rest.outer_step()
