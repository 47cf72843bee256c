"""A user's task families: exact gradients, mini-batches named by task and step."""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from differences import Replay, assert_matches_differences, meta_loss
from families import Logistic, Net, Whole, draw, own_config
from hypothesis import given
from hypothesis import strategies as st
from support import FEW, amplify_head, regression, relative_error, seeds
from torch import Tensor, nn
from torch.nn import functional

import metaopt
from metaopt.base.config import check
from metaopt.base.streams import Stream, choices, item_generator
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.looks import second_order
from metaopt.meta.unroll import rollout
from metaopt.rules.baselines import hand_made
from metaopt.tasks.regression import TaskBatch

# Loss and gradient.


class SameAs(metaopt.Family):
    """The package's own regression tasks, by nothing but their loss."""

    def __init__(self, tasks: TaskBatch) -> None:
        self.tasks = tasks
        self.drawn = 0

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        b = self.drawn
        self.drawn += 1
        weights = {f"W{i}": W[b] for i, W in enumerate(self.tasks.initial)}
        return metaopt.Task(weights, (self.tasks.X[b].mT, self.tasks.Y[b].mT))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        A, Y = data
        *inner, last = weights.values()
        for W in inner:
            A = self.tasks.s(A @ W.mT)
        return 0.5 * (A @ last.mT - Y).square().sum()


@FEW
@given(sizes=st.lists(st.integers(1, 5), min_size=3, max_size=5), seed=seeds)
def test_loss_and_gradient_are_those_of_the_same_tasks_by_hand(sizes: list[int], seed: int) -> None:
    wanted = regression(sizes, samples=3, seed=seed)
    tasks = draw(SameAs(wanted), count=wanted.size)
    found, expected = tasks.observe(tasks.initial), wanted.observe(wanted.initial)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    for mine, by_hand in zip(found.grads, expected.grads, strict=True):
        assert relative_error(mine, by_hand) < 1e-12


def test_gradient_descent_takes_the_same_path_by_hand() -> None:
    wanted = regression([3, 4, 2], samples=3, seed=1)
    tasks = draw(SameAs(wanted), count=wanted.size)
    paths = [rollout(batch, hand_made("GD", {"lr": 1e-3}, 5), 5)[0] for batch in (tasks, wanted)]
    torch.testing.assert_close(*paths, rtol=1e-10, atol=0)
    assert (paths[0][1:] < paths[0][:-1]).all()


@pytest.mark.parametrize("own", [Logistic(), Net()], ids=["logistic", "net"])
def test_each_task_has_its_own_gradient(own: metaopt.Family) -> None:
    tasks = draw(own).at(2)
    found = tasks.observe(tasks.initial)
    for b in range(tasks.size):
        weights = {
            name: W[b].reshape(shape).clone().requires_grad_()
            for (name, shape), W in zip(tasks.shapes.items(), tasks.initial, strict=True)
        }
        loss = own.loss(weights, tuple(tensor[b] for tensor in tasks.seen), *tasks.shared)
        grads = torch.autograd.grad(loss, list(weights.values()))
        assert found.loss is not None
        torch.testing.assert_close(found.loss[b], loss, rtol=1e-12, atol=0)
        for mine, G in zip(found.grads, grads, strict=True):
            torch.testing.assert_close(mine[b].flatten(), G.flatten(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradients_are_those_of_finite_differences(order: int) -> None:
    config = check(TrainConfig, own_config() | {"dtype": "float64"}, "own")
    optimizer, tasks = meta_optimizer(config), draw(Whole(), count=2)
    amplify_head(optimizer.rules["update"], 20)
    replay = Replay()
    meta_loss(optimizer, tasks, {1: replay.record, 2: second_order}[order]).backward()

    def evaluate() -> Tensor:
        replay.rewind()
        return meta_loss(optimizer, tasks, {1: replay.replay, 2: second_order}[order])

    assert_matches_differences(optimizer, evaluate)


# Tasks and mini-batches are named by index and step.


@pytest.mark.parametrize("own", [Logistic(), Net()], ids=["logistic", "net"])
def test_a_task_and_its_minibatches_are_the_same_in_every_batch(own: metaopt.Family) -> None:
    whole, part = draw(own, 0, 6).at(9), draw(own, 2, 3).at(9)
    alike = zip(whole.initial + whole.seen, part.initial + part.seen, strict=True)
    for one, other in alike:
        assert torch.equal(one[2:5], other)
    for one, other in zip(draw(own, 0, 6).select(slice(2, 5)).at(9).seen, part.seen, strict=True):
        assert torch.equal(one, other)
    doubled = draw(own, 2, 3).repeated(2).at(9).seen
    for one, other in zip(doubled, part.seen, strict=True):
        assert torch.equal(one[::2], other)
        assert torch.equal(one[1::2], other)


def test_minibatches_differ_by_step_and_by_task() -> None:
    keys = draw(Logistic(), count=4).keys
    drawn = {
        tuple(row.tolist()) for step in range(50) for row in choices(keys, step, 8, below=1000)
    }
    assert len(drawn) == 4 * 50


@FEW
@given(below=st.integers(1, 2**31), count=st.integers(1, 9), position=st.integers(0, 2**32 - 1))
def test_choices_are_within_their_bound(below: int, count: int, position: int) -> None:
    keys = torch.tensor([[0, 2**32 - 1], [5, 7]])
    drawn = choices(keys, position, count, below)
    assert drawn.shape == (2, count)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < below


def test_choices_are_equally_likely() -> None:
    keys = torch.tensor([[3, 1]])
    drawn = choices(keys, 0, 100_000, below=10)[0]
    counts = torch.bincount(drawn, minlength=10)
    # Standard deviation 95 around 10,000.
    assert int((counts - 10_000).abs().max()) < 5 * 95


def test_the_gradient_of_minibatches_is_that_of_all_data_on_average() -> None:
    tasks = draw(Logistic(batch=8), count=2)
    draws = torch.stack([tasks.at(step).observe(tasks.initial).grads[0] for step in range(400)])
    wanted = draw(Logistic(batch=None), count=2).observe(tasks.initial).grads[0]
    standard_error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - wanted).abs() < 5 * standard_error).all()


def test_items_never_meet_streams_drawn_by_blocks() -> None:
    for index in (0, 1, 2**40):
        counter = item_generator(Stream.TRAIN, 3, index).bit_generator.state["state"]["counter"]
        assert counter.tolist() == [0, index + 1, int(Stream.TRAIN), 0]


def test_trajectories_are_judged_on_what_is_kept_apart() -> None:
    tasks = draw(Logistic())
    losses, _ = rollout(tasks, hand_made("GD", {"lr": 0.1}, 3), 3)
    weights = tasks.initial
    for step in range(4):
        torch.testing.assert_close(losses[step], tasks.loss(weights))
        grads = tasks.at(step).observe(weights).grads
        weights = tuple(W - 0.1 * G for W, G in zip(weights, grads, strict=True))
    x, y = tasks.test
    logits = x @ tasks.initial[0].mT + tasks.initial[1].mT
    by_hand = functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    torch.testing.assert_close(losses[0], by_hand.view(3, -1).mean(1))


def test_fresh_weights_follow_the_modules_own_initialisation() -> None:
    net = Net().net
    before = torch.random.get_rng_state()
    found, again = (metaopt.fresh_weights(net, np.random.default_rng(4)) for _ in range(2))
    other = metaopt.fresh_weights(net, np.random.default_rng(5))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.keys() == dict(net.named_parameters()).keys()
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not torch.equal(found["0.weight"], other["0.weight"])
    assert float(found["0.weight"].abs().max()) <= 1 / math.sqrt(3)
    assert torch.equal(found["2.weight"], torch.ones(4))


def test_fresh_weights_know_attention_and_refuse_what_they_cannot_draw() -> None:
    attention = nn.MultiheadAttention(4, 2)
    found, other = (metaopt.fresh_weights(attention, np.random.default_rng(s)) for s in (0, 1))
    assert not torch.equal(found["in_proj_weight"], other["in_proj_weight"])
    assert not torch.equal(found["out_proj.weight"], other["out_proj.weight"])
    own = nn.Module()
    own.register_parameter("scale", nn.Parameter(torch.randn(3)))
    with pytest.raises(ValueError, match=r"'inner'.*reset_parameters"):
        metaopt.fresh_weights(nn.Sequential(OrderedDict(inner=own)), np.random.default_rng(0))
