"""LearnedOptimizer stands where torch.optim.Adam stood: its step, and parameter groups."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from cases import learned_rule
from models import UPDATES, Problem, equal, every_model, hand_made, states, stepped, take_steps
from places import PRETRAINED
from torch import nn

import metaopt
from metaopt.optim.states import as_matrix
from metaopt.optim.stepper import ModelGround
from metaopt.rules.hand_made import Adam, GradientDescent
from metaopt.tasks.base import Observation
from metaopt.teleport.engine import TeleportEngine

pytestmark = pytest.mark.filterwarnings("error:updates only:UserWarning")


def assert_moved(problem: Problem, before: list[torch.Tensor]) -> None:
    """Every weight, but a bias before BatchNorm: its gradient is of rounding alone."""
    grads = [p.grad for p in problem.model.parameters() if p.grad is not None]
    largest = max(float(G.abs().max()) for G in grads)
    for a, b, G in zip(before, problem.weights(), grads, strict=True):
        assert not torch.equal(a, b) or float(G.abs().max()) < 1e-6 * largest


@pytest.mark.parametrize(("name", "lr"), [("coordinate_update", 1e-3), ("digits_update_tele", 1)])
@every_model
def test_models_of_any_kind_train_without_special_casing(
    make: Callable[[], Problem], name: str, lr: float
) -> None:
    problem = make()
    path = PRETRAINED / f"{name}.safetensors"
    optimizer = metaopt.LearnedOptimizer(problem.model, path, lr=lr)
    first, before = problem.backward(), problem.weights()
    take_steps(problem, optimizer, 10)
    assert problem.loss() < first
    assert all(bool(W.isfinite().all()) for W in problem.weights())
    assert_moved(problem, before)


@every_model
def test_a_step_is_the_meta_optimizers(make: Callable[[], Problem]) -> None:
    rule = learned_rule(UPDATES)
    problem = make().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, rule)
    weights = tuple(as_matrix(W) for W in problem.weights())
    state = None
    for _ in range(3):
        problem.backward()
        grads = tuple(as_matrix(p.grad) for p in problem.model.parameters() if p.grad is not None)
        seen = Observation(weights, grads, (), None)
        state = rule.optimizer.initial_rule_states(seen) if state is None else state
        with torch.no_grad():
            proposal, state = rule.optimizer.propose(seen, state)
            taken = rule.optimizer.carry_out(
                weights, proposal, state, ModelGround(None, None, None)
            )
        weights, state = taken.weights, taken.state
        optimizer.step()
        for W, found in zip(weights, problem.weights(), strict=True):
            torch.testing.assert_close(as_matrix(found), W, rtol=1e-12, atol=0)


@every_model
@pytest.mark.parametrize("rate", [0.0, 0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_lr_multiplies_updates(make: Callable[[], Problem], rate: Any) -> None:
    start, whole, part = make().to(torch.float64), stepped(make), stepped(make, lr=rate)
    for w, one, other in zip(start.weights(), whole.weights(), part.weights(), strict=True):
        torch.testing.assert_close(other - w, rate * (one - w), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", ["coordinate_lstm", "coordinate_directions", "lstm_step"])
def test_without_lr_nothing_moves(kind: str) -> None:
    start = models.chain().to(torch.float64)
    there: dict[str, Any] = {"make": models.chain, "rule": learned_rule(kind), "full_batch": True}
    assert equal(stepped(**there, lr=0.0).weights(), start.weights())
    assert not equal(stepped(**there).weights(), start.weights())


def test_lr_multiplies_generators() -> None:
    """W2 -> W2 exp(-T) takes W2 exp(-lr T), with updates of 0 and within the norm limit."""
    rule = learned_rule("coordinate_lstm")
    engine = rule.optimizer.engine
    assert isinstance(engine, TeleportEngine)
    engine.limit.max_norm = 1e6
    with torch.no_grad():
        for parameter in rule.optimizer.rules["update"].parameters():
            parameter.zero_()
    problem = models.chain().to(torch.float64)
    problem.backward()
    W1, W2 = (p.detach()[None] for p in problem.model.parameters())
    grads = tuple(p.grad[None] for p in problem.model.parameters() if p.grad is not None)
    X = problem.x.T[None]
    inputs = (X, nn.functional.leaky_relu(W1 @ X, 0.1))
    seen = Observation((W1, W2), grads, inputs, None)
    proposal, _ = rule.optimizer.propose(seen, rule.optimizer.initial_rule_states(seen))
    assert proposal.generators is not None
    (T,) = (generator.detach() for generator in proposal.generators)
    assert float(T.norm()) > 1e-2
    for lr in (1.0, 0.3):
        found = stepped(models.chain, rule, lr=lr, full_batch=True).weights()[1]
        expected = (W2 @ torch.linalg.matrix_exp(-lr * T))[0]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@every_model
def test_weight_decay_is_decoupled(make: Callable[[], Problem]) -> None:
    """w' = (1 - lr decay) w + lr f."""
    start, plain = make().to(torch.float64), stepped(make)
    decayed = stepped(make, lr=0.5, weight_decay=0.1)
    for w, one, found in zip(start.weights(), plain.weights(), decayed.weights(), strict=True):
        expected = (1 - 0.5 * 0.1) * w + 0.5 * (one - w)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@every_model
def test_with_the_rule_of_adam_it_is_adamw(make: Callable[[], Problem]) -> None:
    ours, theirs = make().to(torch.float64), make().to(torch.float64)
    rule = hand_made(Adam(0.01, 0.9, 0.99))
    take_steps(ours, metaopt.LearnedOptimizer(ours.model, rule, lr=0.5, weight_decay=0.2), 5)
    adamw = torch.optim.AdamW(
        theirs.model.parameters(), lr=0.005, betas=(0.9, 0.99), weight_decay=20
    )
    take_steps(theirs, adamw, 5)
    for a, b in zip(ours.weights(), theirs.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_clipped_gradients_are_what_rules_see() -> None:
    problem = models.convolutional().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, hand_made(GradientDescent(1.0)))
    before = problem.weights()
    problem.backward()
    nn.utils.clip_grad_norm_(problem.model.parameters(), 1e-3)
    optimizer.step()
    moves = [(a - b).square().sum() for a, b in zip(before, problem.weights(), strict=True)]
    assert float(torch.stack(moves).sum().sqrt()) == pytest.approx(1e-3, rel=1e-2)


def test_a_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    plain, problem = stepped(models.perceptron), models.perceptron().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
    expected = problem.loss().detach()
    assert torch.equal(optimizer.step(problem.backward), expected)
    assert equal(plain.weights(), problem.weights())


# Groups, and parameters that take no part.


@every_model
@pytest.mark.parametrize("kind", [UPDATES, "adam_alone"])
def test_groups_do_not_change_what_rules_see(make: Callable[[], Problem], kind: str) -> None:
    def rule() -> metaopt.LearnedRule:
        return hand_made(Adam(0.01, 0.9, 0.99)) if kind == "adam_alone" else learned_rule(kind)

    one, split, reverse = (make().to(torch.float64) for _ in range(3))
    take_steps(one, metaopt.LearnedOptimizer(one.model, rule()), 3)
    parameters = [*split.model.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() < 2]},
        {"params": [p for p in parameters if p.dim() >= 2]},
    ]
    take_steps(split, metaopt.LearnedOptimizer(split.model, rule(), params=groups), 3)
    backwards = reversed([*reverse.model.parameters()])
    take_steps(reverse, metaopt.LearnedOptimizer(reverse.model, rule(), params=backwards), 3)
    assert equal(one.weights(), split.weights())
    assert equal(one.weights(), reverse.weights())


def test_each_group_has_its_own_options() -> None:
    whole = stepped(models.perceptron)
    start, problem = (models.perceptron().to(torch.float64) for _ in range(2))
    parameters = [*problem.model.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": parameters[:2], "lr": 0.5},
        {"params": parameters[2:3], "weight_decay": 0.1},
        {"params": parameters[3:], "lr": 0.0, "weight_decay": 0.1},
    ]
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES), params=groups)
    take_steps(problem, optimizer, 1)
    factors, decays = (0.5, 0.5, 1.0, 0.0), (0.0, 0.0, 0.1, 0.0)
    found = zip(start.weights(), whole.weights(), problem.weights(), factors, decays, strict=True)
    for w, one, here, factor, decay in found:
        expected = w - decay * w + factor * (one - w)
        torch.testing.assert_close(here, expected, rtol=1e-10, atol=1e-14)


def test_parameters_alone_do_as_well_as_a_model() -> None:
    problem = models.convolutional().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model.parameters(), learned_rule(UPDATES))
    take_steps(problem, optimizer, 1)
    assert equal(problem.weights(), stepped(models.convolutional).weights())


@pytest.mark.parametrize("rule", [learned_rule(UPDATES), hand_made(Adam(0.01, 0.9, 0.99))])
def test_parameters_without_gradient_keep_weights_and_state(rule: metaopt.LearnedRule) -> None:
    problem = models.convolutional().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, rule, weight_decay=0.1)
    take_steps(problem, optimizer, 2)
    unused = [*problem.model.parameters()][2:4]
    before, states = problem.weights(), copy.deepcopy([optimizer.state[p] for p in unused])
    problem.backward()
    for p in unused:
        p.grad = None
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, problem.weights(), strict=True)]
    assert moved == [index not in {2, 3} for index in range(len(moved))]
    for p, state in zip(unused, states, strict=True):
        assert state
        assert all(torch.equal(optimizer.state[p][key], state[key]) for key in state)
    optimizer.zero_grad()
    before, states = problem.weights(), copy.deepcopy([*optimizer.state.values()])
    optimizer.step()
    assert equal(problem.weights(), before)
    for one, state in zip(optimizer.state.values(), states, strict=True):
        assert all(torch.equal(one[key], state[key]) for key in state)


def test_frozen_parameters_stay_until_they_are_added() -> None:
    problem = models.convolutional().to(torch.float64)
    first = [*problem.model.parameters()][:2]
    for p in first:
        p.requires_grad_(False)
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
    before = problem.weights()
    take_steps(problem, optimizer, 2)
    assert equal(problem.weights()[:2], before[:2])
    assert not torch.equal(problem.weights()[2], before[2])
    for p in first:
        p.requires_grad_(True)
    others = [p for p in problem.model.parameters() if p not in optimizer.state]
    assert [id(p) for p in others] == [id(p) for p in first]
    kept = states(optimizer)
    shared = {key: kept[optimizer.in_order()[0]].pop(key) for key in optimizer.shared_state()}
    optimizer.add_param_group({"params": first, "lr": 0.5})
    assert optimizer.in_order()[0] is first[0]
    for parameter, state in (*kept.items(), (first[0], shared)):
        found = optimizer.state[parameter]
        assert all(torch.equal(found[key], state[key]) for key in state)
    take_steps(problem, optimizer, 1)
    assert_moved(problem, before)


def test_thawed_parameters_take_over_what_belongs_to_all() -> None:
    """Adam's count of steps goes on where the first parameter is added last."""
    problem = models.perceptron().to(torch.float64)
    first, *others = problem.model.parameters()
    first.requires_grad_(False)
    optimizer = metaopt.LearnedOptimizer(problem.model, hand_made(Adam(0.01, 0.9, 0.99)))
    take_steps(problem, optimizer, 2)
    first.requires_grad_(True)
    optimizer.add_param_group({"params": [first]})
    take_steps(problem, optimizer, 1)
    assert float(optimizer.state[first]["update.decay1"]) == pytest.approx(0.9**3)
    assert "update.decay1" not in optimizer.state[others[0]]
