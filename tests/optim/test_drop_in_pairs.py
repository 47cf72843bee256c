"""Teleports of linear pairs in a user's loop: the inner loop's own step, resumed, or turned off."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from paired import adapters, trained
from torch import Tensor, nn

import metaopt
from metaopt.base.config import check
from metaopt.base.streams import Stream
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.unroll import start, unroll
from metaopt.tasks.factorised import Sensing
from metaopt.tasks.own_batch import LossFamily

STEPS = 4


def rule(seed: int = 0) -> metaopt.LearnedRule:
    """An untrained pair in float64, with loud heads, so that all that it says can be seen."""
    content = {
        "name": "pairs",
        "seed": seed,
        "dtype": "float64",
        "task": {"family": "metaopt.tasks.factorised:Sensing", "options": {"size": 6, "rank": 2}},
        "rules": {
            "update": {"kind": "matrix_lstm", "hidden": 4, "unserved": -1.0},
            "teleport": {"kind": "pair_lstm", "hidden": 4},
        },
        "meta": {"hide": {"loss": 0.5}},
    }
    config = check(TrainConfig, content, "pairs")
    return metaopt.LearnedRule(meta_optimizer(config), config)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


def batches(count: int) -> Tensor:
    return torch.randn(count, 6, 5, generator=torch.Generator().manual_seed(0)).double()


def test_a_drop_in_step_is_that_of_the_inner_loop() -> None:
    family = Sensing(size=6, rank=2, measured="vectors", batch=None)
    tasks = LossFamily(family, "x").sample(Stream.TEST, 0, 0, 1, dtype=torch.float64)
    learned = rule()
    state = start(tasks, learned.optimizer)
    with torch.no_grad():
        state, _ = unroll(tasks, learned.optimizer, state, STEPS)

    net = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)).double()
    names = dict(net.named_parameters())
    for name, W in zip(tasks.shapes, tasks.initial, strict=True):
        with torch.no_grad():
            names[name].copy_(W.reshape(names[name].shape))
    optimizer = metaopt.LearnedOptimizer(net, learned)
    assert optimizer.teleports_off is None
    data = tuple(part[0] for part in tasks.data)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = family.loss(dict(net.named_parameters()), data)
        loss.backward()
        return loss

    for _ in range(STEPS):
        optimizer.step(closure)
    for name, W in zip(tasks.shapes, state.weights, strict=True):
        assert torch.allclose(names[name].detach(), W.reshape(names[name].shape), atol=1e-10)


def test_it_goes_on_bit_for_bit() -> None:
    x = batches(2 * STEPS)
    net = adapters()
    optimizer = metaopt.LearnedOptimizer(net, rule())
    for i in range(STEPS):
        step(net, optimizer, x[i])
    again = copy.deepcopy(net)
    resumed = metaopt.LearnedOptimizer(again, rule())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for i in range(STEPS, 2 * STEPS):
        step(net, optimizer, x[i])
        step(again, resumed, x[i])
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_without_the_model_there_are_updates_alone() -> None:
    net = adapters()
    with pytest.warns(UserWarning, match="updates only, no teleports: no model was given"):
        optimizer = metaopt.LearnedOptimizer(trained(net).values(), rule())
    assert optimizer.teleports_off == "no model was given"
    step(net, optimizer, batches(1)[0])


def test_a_model_without_pairs_is_told_so() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with pytest.warns(UserWarning, match="it has no linear pairs; metaopt.symmetries"):
        metaopt.LearnedOptimizer(net, rule())


def test_factors_that_are_frozen_on_the_way_end_teleports_with_a_warning() -> None:
    net = adapters()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = metaopt.LearnedOptimizer(net, rule())
        step(net, optimizer, batches(1)[0])
    first = next(iter(trained(net).values()))
    optimizer.zero_grad()
    net(batches(1)[0]).square().mean().backward()
    first.grad = None
    with pytest.warns(UserWarning, match="some weights of its linear pairs have no gradient"):
        optimizer.step()


def test_a_smaller_rate_makes_shorter_steps_in_the_same_frames() -> None:
    x, ends = batches(1)[0], []
    for lr in (0.0, 1e-9):
        net = adapters()
        before = net(x).detach()
        optimizer = metaopt.LearnedOptimizer(net, rule(), lr=lr)
        step(net, optimizer, x)
        assert torch.allclose(net(x), before, atol=1e-6)
        ends.append([p.detach().clone() for p in net.parameters()])
    start_of = [p.detach() for p in adapters().parameters()]
    assert all(torch.equal(p, q) for p, q in zip(ends[0], start_of, strict=True))
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(ends[1], start_of, strict=True))
