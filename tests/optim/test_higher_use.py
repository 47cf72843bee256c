"""``higher`` as it is used: at test time, with parts of a model, in other precisions."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import higher
import models
import pytest
import torch
from cases import learned_rule
from torch import Tensor, nn

import metaopt

STEPS = 3


class Two(nn.Module):
    """Two layers side by side, of which the second may rest."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(4, 3)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        return self.first(x) + self.second(x) if both else self.first(x)


def loss(model: Any, both: bool) -> Tensor:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 0.5 * (model(x, both) - 1).square().sum()


def telling(value: Tensor) -> Callable[[], Tensor]:
    """A closure after the fact."""
    return lambda: value


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", ["coordinate_directions_update", "layer", "coordinate_lstm"])
@pytest.mark.parametrize("used", [[True, False, True, False], [False, True, False, True]])
@pytest.mark.filterwarnings("ignore:updates only:UserWarning")
def test_layers_that_a_step_does_not_use_stay(kind: str, order: int, used: list[bool]) -> None:
    """The weights of an unroll are those of plain steps, and gradients reach the rule."""
    plain = Two().double()
    rule = learned_rule(kind, order=order)
    optimizer = metaopt.LearnedOptimizer(plain, rule, lr=0.02)
    for both in used:
        optimizer.zero_grad()
        own = loss(plain, both)
        own.backward()
        optimizer.step(telling(own))
    model = Two().double()
    with higher.innerloop_ctx(model, metaopt.LearnedOptimizer(model, rule, lr=0.02)) as (
        functional,
        differentiable,
    ):
        for both in used:
            differentiable.step(loss(functional, both))
        loss(functional, True).backward()
        for a, b in zip(functional.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    update = rule.optimizer.rules["update"]
    assert all(p.grad is not None and bool(p.grad.any()) for p in update.parameters())


@pytest.mark.parametrize("kind", ["coordinate_directions", "layer_units", "adam_units"])
def test_without_higher_gradients_a_step_keeps_no_graph(kind: str) -> None:
    here = models.chain().to(torch.float64)
    rule = learned_rule(kind)
    optimizer = metaopt.LearnedOptimizer(here.model, rule, full_batch=True)
    with higher.innerloop_ctx(here.model, optimizer, track_higher_grads=False) as (
        functional,
        differentiable,
    ):
        losses = []
        for _ in range(STEPS):
            value = 0.5 * (functional(here.x) - 1).square().sum()
            losses.append(weakref.ref(value))
            differentiable.step(value)
            states = [
                t for group in differentiable.state for s in group.values() for t in s.values()
            ]
            assert not any(t.requires_grad for t in states)
            assert all(p.is_leaf and p.requires_grad for p in functional.parameters())
        del value
        gc.collect()
        assert [one() for one in losses] == [None] * STEPS
        found = [p.detach() for p in functional.parameters()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = 0.5 * (here.model(here.x) - 1).square().sum()
        value.backward()
        optimizer.step(telling(value))
    for a, b in zip(found, here.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_reach_the_rule_whatever_its_dtype(order: int) -> None:
    """Those of a float32 rule on a float64 model are those of the rule in float64, rounded."""
    found = []
    for dtype in (torch.float64, torch.float32):
        rule = learned_rule("coordinate_directions_update", order=order)
        rule.optimizer.to(torch.float32).to(dtype)
        here = models.chain().to(torch.float64)
        optimizer = metaopt.LearnedOptimizer(here.model, rule)
        for _ in range(2):  # One optimizer for several unrolls, of the rule as it is by then.
            rule.optimizer.zero_grad()
            with higher.innerloop_ctx(here.model, optimizer) as (functional, differentiable):
                for _ in range(STEPS):
                    differentiable.step(0.5 * (functional(here.x) - 1).square().sum())
                functional(here.x).square().sum().backward()
            grads = [p.grad for p in rule.optimizer.parameters()]
            with torch.no_grad():
                for p in rule.optimizer.parameters():
                    p.mul_(0.5)
        found.append([None if g is None else g.double() for g in grads])
    for exact, rounded in zip(*found, strict=True):
        assert exact is not None
        assert rounded is not None
        assert float(exact.norm()) > 0
        torch.testing.assert_close(rounded, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_options_frozen_parameters_and_callbacks(tracked: bool, copied: bool) -> None:
    here = models.perceptron().to(torch.float64)
    first = next(here.model.parameters()).requires_grad_(False)
    rule = learned_rule("layer")
    optimizer = metaopt.LearnedOptimizer(here.model, rule)
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    with higher.innerloop_ctx(
        here.model,
        optimizer,
        copy_initial_weights=copied,
        track_higher_grads=tracked,
        override={"lr": [rate]},
    ) as (functional, differentiable):
        for _ in range(STEPS):
            differentiable.step(
                nn.functional.cross_entropy(functional(here.x), here.labels),
                grad_callback=lambda grads: [None if g is None else 0.5 * g for g in grads],
            )
        assert torch.equal(next(iter(functional.parameters())), first)
        nn.functional.cross_entropy(functional(here.x), here.labels).backward()
    assert (rate.grad is not None) is tracked
    last = [*here.model.parameters()][-1]
    assert (last.grad is not None) is (tracked and not copied)
