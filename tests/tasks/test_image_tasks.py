"""Digits and MNIST as task families: which images who sees, and what judges trajectories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import write_mnist
from places import PRETRAINED
from torch.nn import functional

import metaopt
from metaopt.base import checkpoint
from metaopt.base.config import load
from metaopt.base.errors import UserError
from metaopt.base.shipped import CONFIGS
from metaopt.base.streams import Stream
from metaopt.evaluation.config import EvalConfig
from metaopt.meta import build
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.looks import as_judged, second_order
from metaopt.meta.unroll import last_loss, rollout
from metaopt.rules.baselines import hand_made
from metaopt.tasks.build import task_family
from metaopt.tasks.images import Images
from metaopt.tasks.own_batch import LossFamily


def rows(family: Images, count: int = 3) -> list[tuple[set[int], set[int]]]:
    generator = np.random.default_rng(0)
    tasks = [family.sample(generator) for _ in range(count)]
    return [(set(t.data[0].tolist()), set(t.test[0].tolist())) for t in tasks]


def test_no_task_shows_an_unseen_image() -> None:
    seen, unseen = Images(width=4), Images(width=4, unseen=True)
    assert torch.equal(seen.shared[0], unseen.shared[0])
    shown = set().union(*(data | test for data, test in rows(seen)))
    judged = set().union(*(test for _, test in rows(unseen)))
    assert len(judged) == 599
    assert not shown & judged
    for data, test in rows(seen) + rows(unseen):
        assert not data & test
        assert len(data) + len(test) >= 1198
    trained = rows(unseen)[0][0]
    assert trained == set(range(1198))


def test_a_shipped_rule_finds_its_images_where_they_are_now() -> None:
    """Its file has the path that the class had when it was trained."""
    path = PRETRAINED / "digits_update_tele.safetensors"
    assert checkpoint.read(path).config["task"]["family"] == "metaopt.image_tasks:Images"
    family = task_family(metaopt.load(path).config.task)
    assert isinstance(family, LossFamily)
    assert isinstance(family.own, Images)


def test_tasks_split_their_images_anew() -> None:
    first, second = (test for _, test in rows(Images(width=4), 2))
    assert first != second


def test_the_loss_is_the_cross_entropy_of_the_network() -> None:
    family = Images(width=4)
    task = family.sample(np.random.default_rng(1))
    W1, b1, W2, b2 = task.weights.values()
    some = task.data[0][:20]
    x, y = (tensor[some] for tensor in family.shared)
    hidden = functional.leaky_relu(x @ W1.T + b1, 0.1)
    wanted = functional.cross_entropy(hidden @ W2.T + b2, y)
    torch.testing.assert_close(family.loss(dict(task.weights), (some,), *family.shared), wanted)


def test_mnist_by_the_same_configuration(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", 40, gzipped=False)
    write_mnist(tmp_path, "t10k", 12, gzipped=True)
    family = Images(width=3, path=str(tmp_path), unseen=True, judged=10)
    (data, test), *_ = rows(family, 1)
    assert data == set(range(40))
    assert len(test) == 10
    assert test <= set(range(40, 52))
    override = f"task.options={{width: 3, path: {tmp_path}}}"
    config = load(TrainConfig, "digits_update_tele.yaml", [override])
    tasks = task_family(config.task).sample(Stream.TRAIN, 0, 0, 2)
    losses, _ = rollout(tasks, meta_optimizer(config), 2)
    assert losses.isfinite().all()
    assert tasks.units is not None
    assert tasks.units.sizes == (3,)


def test_evaluation_is_at_another_width_on_unseen_images() -> None:
    training = load(TrainConfig, "digits_update_tele.yaml").task.options
    evaluation = load(EvalConfig, CONFIGS / "eval_digits.yaml").task.options
    assert training is not None
    assert evaluation is not None
    assert "unseen" not in training
    assert evaluation["unseen"] is True
    assert evaluation["width"] != training["width"]


@pytest.mark.parametrize("unseen", [False, True])
def test_judged_losses_are_differentiated(unseen: bool) -> None:
    family = LossFamily(Images(width=3, unseen=unseen), "images")
    tasks = family.sample(Stream.TRAIN, 0, 0, 2, torch.float64).at(0)
    weights = tuple(W.clone().requires_grad_() for W in tasks.initial)
    loss, observation = as_judged(second_order)(tasks, weights)
    torch.testing.assert_close(loss, tasks.loss(tasks.initial))
    assert observation.loss is not None
    assert not torch.allclose(loss, observation.loss)
    gradients = torch.autograd.grad(loss.sum(), weights)
    direction = torch.ones_like(weights[1])
    step = 1e-6
    moved = [(*weights[:1], weights[1] + s * step * direction, *weights[2:]) for s in (1, -1)]
    difference = (tasks.loss(moved[0]).sum() - tasks.loss(moved[1]).sum()) / (2 * step)
    assert float(gradients[1].detach().sum()) == pytest.approx(float(difference.detach()), rel=1e-5)


def test_the_last_loss_is_that_of_the_whole_curve() -> None:
    family = LossFamily(Images(width=3), "images")
    tasks = family.sample(Stream.TRAIN, 0, 0, 2)
    adam = hand_made("Adam", {"lr": 0.01, "beta1": 0.9, "beta2": 0.99}, 4)
    losses, _ = rollout(tasks, adam, 4)
    torch.testing.assert_close(last_loss(tasks, adam, 4), losses[-1])


@pytest.mark.parametrize(
    ("override", "field", "hint"),
    [
        ("task.options={width: 4, network: mlp}", "network", "expected one of two_layers"),
        ("task.more=[{wide: 4}]", "field task.more[0]", "missing a required argument: 'width'"),
        ("task.options={width: 4, path: nowhere}", "nowhere", "expected this file"),
    ],
)
def test_mistakes_end_in_a_line(override: str, field: str, hint: str) -> None:
    config = load(TrainConfig, "digits_update_tele.yaml", [override])
    with pytest.raises(UserError) as caught:
        build.training_tasks(task_family(config.task), config)
    message = str(caught.value)
    assert field in message
    assert hint in message
    assert "\n" not in message
