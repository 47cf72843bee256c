"""Scaling of hidden units: outputs stay on any data, and what is of gradients moves inversely."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import models
import pytest
import torch
from cases import learned_rule
from cases import tasks as sample
from hypothesis import given
from hypothesis import strategies as st
from models import Problem, every_model, take_steps
from support import FEW, SIZES, regression, seeds, signed
from teleports import change, every_moving, outputs
from torch import Tensor, nn
from zoo import ZOO

import metaopt
from metaopt import LearnedOptimizer
from metaopt.base.network import Weights, as_matrices
from metaopt.meta.unroll import rollout, start, unroll
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.hand_made import Adam, Momentum
from metaopt.symmetry.groups import Group, Symmetries
from metaopt.symmetry.limits import BoundedNorm
from metaopt.symmetry.units import MAKES, READS, HiddenUnits, units_of
from metaopt.teleport.optimizer_state import Kept
from metaopt.teleport.unit_engine import UnitEngine


def scaled_model(
    model: nn.Module, t_of: Callable[[int], Tensor]
) -> tuple[nn.Module, HiddenUnits] | None:
    """A copy of the model with its units scaled, through matrices as learned rules see them."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    units = units_of([s for s in metaopt.symmetries(model) if not s.assumes], shapes)
    if units is None:
        return None
    matrices = tuple(as_matrices(p.detach()[None]) for p in model.parameters())
    scaled, _ = units.scaled(t_of(units.count)[None].to(matrices[0]), matrices)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, W in zip(moved.parameters(), scaled, strict=True):
            p.copy_(W.reshape(p.shape))
    return moved, units


@every_moving
def test_outputs_stay_on_every_architecture(name: str) -> None:
    specimen = ZOO[name]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = specimen.model().to(dtype)
        found = scaled_model(model, lambda count: 0.5 * signed(count, seed=3))
        if found is None:
            # Nothing that may be scaled without assuming something of the inputs.
            listed = metaopt.symmetries(model)
            assert all(s.assumes or Group.SCALING not in s.allows for s in listed)
            continue
        moved, units = found
        assert units.count > 0
        assert any(
            not torch.equal(p, q)
            for p, q in zip(model.parameters(), moved.parameters(), strict=True)
        )
        before, after = (
            outputs(copy.deepcopy(m), specimen.inputs(dtype=dtype)) for m in (model, moved)
        )
        assert change(before, after) < tolerance


def small_cnn() -> tuple[nn.Module, HiddenUnits]:
    """Three channels, each read by four columns."""
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).double()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    units = units_of(metaopt.symmetries(model), shapes)
    assert units is not None
    return model, units


def test_every_unit_is_scaled_by_its_own_factor() -> None:
    model, *_ = small_cnn()
    found = scaled_model(model, lambda count: torch.tensor([0.5, -1.0, 2.0]))
    assert found is not None
    factors = torch.tensor([0.5, -1.0, 2.0]).double().exp()
    columns = (1 / factors).repeat_interleave(4)
    W1, b1, W2, b2 = model.parameters()
    wanted = (factors[:, None, None, None] * W1, factors * b1, W2 * columns, b2)
    for parameter, one in zip(found[0].parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter, one)


def test_sums_are_over_what_makes_and_what_reads_a_unit() -> None:
    model, units = small_cnn()
    squares = [p.detach().square() for p in model.parameters()]
    values = tuple(as_matrices(square[None]) for square in squares)
    makes = squares[0].sum(dim=(1, 2, 3)) + squares[1]
    reads = squares[2].reshape(4, 3, 4).sum(dim=(0, 2))
    torch.testing.assert_close(units.sums(values, MAKES)[0], makes)
    torch.testing.assert_close(units.sums(values, READS)[0], reads)
    assert units.means(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[3.0, 3.0, 3.0]]


def test_symmetries_on_other_parameters_or_assumptions_give_no_units() -> None:
    model = ZOO["mlp"].model()
    found = metaopt.symmetries(model)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    whole = units_of(found, shapes)
    assert whole is not None
    assert len(found) > 1
    assert whole.sizes == tuple(s.size for s in found)
    without = dict(list(shapes.items())[2:])
    stays = [s.size for s in found if all(slot.path in without for slot in s.slots)]
    assert 0 < len(stays) < len(found)
    some = units_of(found, without)
    assert some is not None
    assert some.sizes == tuple(stays)
    assumed = units_of([replace(found[0], assumes="something"), *found[1:]], shapes)
    assert assumed is not None
    assert assumed.sizes == whole.sizes[1:]
    assert units_of(Symmetries([]), shapes) is None


@FEW
@given(sizes=st.lists(st.integers(1, 5), min_size=3, max_size=5), seed=seeds)
def test_a_scaling_keeps_the_loss_and_moves_gradients_inversely(
    sizes: list[int], seed: int
) -> None:
    tasks = regression(sizes, samples=3, seed=seed)
    t = signed(2, sum(sizes[1:-1]), seed=seed)
    engine = UnitEngine(BoundedNorm(2.0))
    moved, report = engine.teleport(tasks.initial, (t,), tasks)
    before, after = tasks.observe(tasks.initial), tasks.observe(moved)
    torch.testing.assert_close(tasks.loss(moved), before.loss, rtol=1e-10, atol=0)
    for G, wanted, log in zip(before.grads, after.grads, report.log_factors, strict=True):
        torch.testing.assert_close((-log).exp() * G, wanted, rtol=1e-8, atol=1e-10)
    rms = report.t.square().mean(1).sqrt()
    assert float(rms.max()) <= 2.0
    torch.testing.assert_close(report.norm, torch.linalg.vector_norm(report.t, dim=1))


@pytest.mark.parametrize("kind", ["layer_units", "adam_units"])
def test_states_are_those_of_gradients_at_the_scaled_weights(kind: str) -> None:
    tasks = regression(SIZES, samples=3, seed=1)
    rules = learned_rule(kind).optimizer.rules
    t = 0.5 * signed(2, sum(SIZES[1:-1]), seed=2)
    moved, logs = tasks.units.scaled(t, tasks.initial)

    def history(weights: Weights) -> dict[str, dict[str, Tensor]]:
        """States after several gradients at one point, as a learning rate of 0 would leave them."""
        observation = tasks.observe(weights)
        states = {name: rule.initial_state(observation) for name, rule in rules.items()}
        for _ in range(3):
            states = {
                name: rule.propose(observation, states[name])[1] for name, rule in rules.items()
            }
        return states

    before, wanted = history(tasks.initial), history(moved)
    compared = 0
    for name, rule in rules.items():
        found = rule.scaled(before[name], t, logs)
        for key in found:
            gradients = rule.kept(key) in (Kept.GRADIENTS, Kept.SQUARES)
            of_adam = isinstance(rule, Adam | Momentum)
            if gradients or key == "squares" or (of_adam and "decay" not in key):
                torch.testing.assert_close(found[key], wanted[name][key], rtol=1e-9, atol=1e-12)
                assert not torch.equal(before[name][key], wanted[name][key])
                compared += 1
    assert compared >= 3


def test_relabelled_units_are_scaled_alike() -> None:
    rule = learned_rule("layer_units")
    tasks = sample(rule.config.task, count=2)
    order = torch.tensor([2, 0, 3, 1])
    W1, W2 = tasks.initial
    relabelled = (W1[:, order], W2[:, :, order])
    ends = []
    for initial in (tasks.initial, relabelled):
        own = replace(tasks, initial=initial)
        state, _ = unroll(own, rule.optimizer, start(own, rule.optimizer), 5)
        ends.append(state.weights)
    torch.testing.assert_close(ends[0][0][:, order], ends[1][0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ends[0][1][:, :, order], ends[1][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-6, 1e3])
def test_the_scale_of_gradients_does_not_matter(factor: float) -> None:
    rule = learned_rule("layer_units").optimizer.rules["teleport"]
    tasks = sample(learned_rule("layer_units").config.task, count=2)
    seen = tasks.observe(tasks.initial)
    other = replace(seen, grads=tuple(factor * G for G in seen.grads))
    (t,), (wanted,) = (
        rule.propose(one, rule.initial_state(one))[0].generators or () for one in (other, seen)
    )
    torch.testing.assert_close(t, wanted, rtol=1e-9, atol=1e-12)


def test_teleports_of_units_are_traced() -> None:
    rule = learned_rule("layer_units")
    tasks = sample(rule.config.task, count=3)
    _, trace = rollout(tasks, rule.optimizer, 12)
    assert trace is not None
    assert trace.norm.shape == (12, 3)
    assert float(trace.norm.min()) > 1e-3
    assert float(trace.drift.max()) < 1e-10
    assert float(trace.log_ratio.abs().max()) < 1e-10
    assert not trace.refused.any()


# In a user's loop.


def pair_and_updates(make: Callable[[], Problem]) -> list[tuple[Problem, LearnedOptimizer]]:
    """The same model under a rule with teleports, and under its updates alone."""
    rule = learned_rule("layer_units")
    updates = MetaOptimizer({"update": rule.optimizer.rules["update"]}, None)
    found = []
    for own in (rule, metaopt.LearnedRule(updates, rule.config)):
        problem = make()
        found.append((problem, LearnedOptimizer(problem.model, own)))
    return found


@every_model
def test_models_teleport_while_they_train(make: Callable[[], Problem]) -> None:
    (problem, optimizer), (alone, updates) = pair_and_updates(make)
    take_steps(problem, optimizer, 1)
    take_steps(alone, updates, 1)
    # After one step the updates are the same: what differs is the teleport, which keeps outputs.
    torch.testing.assert_close(problem.loss(), alone.loss(), rtol=1e-4, atol=1e-5)
    pairs = zip(problem.weights(), alone.weights(), strict=True)
    assert any(float((a - b).norm()) > 1e-4 * float(b.norm()) for a, b in pairs)


def test_a_unit_stays_where_a_part_of_it_has_no_gradient() -> None:
    ends = []
    for problem, optimizer in pair_and_updates(models.perceptron):
        read = [*problem.model.parameters()][2]
        before = read.detach().clone()
        problem.backward()
        read.grad = None
        optimizer.step()
        assert torch.equal(read, before)
        ends.append(problem.weights())
    assert models.equal(*ends)


def test_thawed_layers_bring_new_units() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    problem = Problem(nn.Sequential(*layers), torch.randn(10, 6), torch.arange(10) % 3)
    layers[-1].requires_grad_(False)
    optimizer = LearnedOptimizer(problem.model, learned_rule("layer_units"))
    take_steps(problem, optimizer, 2)
    first = optimizer.in_order()[0]
    assert optimizer.state[first]["teleport.squares"].shape == (1, 2, 5)
    counted = optimizer.state[first]["update.count"].clone()
    layers[-1].requires_grad_(True)
    optimizer.add_param_group({"params": [*layers[-1].parameters()]})
    take_steps(problem, optimizer, 2)
    assert optimizer.state[first]["teleport.squares"].shape == (1, 2, 9)
    assert float(optimizer.state[first]["update.count"]) == float(counted) + 2


@pytest.mark.parametrize("through", ["a copy", "a state dict"])
def test_states_of_units_that_are_gone_begin_anew(through: str) -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    problem = Problem(nn.Sequential(*layers), torch.randn(10, 6), torch.arange(10) % 3)
    optimizer = LearnedOptimizer(problem.model, learned_rule("layer_units"))
    take_steps(problem, optimizer, 2)
    if through == "a copy":
        layers[4].requires_grad_(False)
        problem.model.zero_grad()
        model, other = copy.deepcopy((problem.model, optimizer))
        problem = Problem(model, problem.x, problem.labels)
    else:
        layers[4].register_forward_hook(lambda *_: None)
        other = LearnedOptimizer(problem.model, learned_rule("layer_units"))
        with pytest.warns(UserWarning, match="the state of teleport begins anew: it was saved for"):
            other.load_state_dict(optimizer.state_dict())
    take_steps(problem, other, 2)
    state = other.state[other.in_order()[0]]
    assert state["teleport.squares"].shape == (1, 2, 5)
    assert float(state["update.count"]) == 4


def test_parameters_of_other_models_may_come_along() -> None:
    problem = models.perceptron()
    extra = nn.Parameter(torch.ones(3))
    parameters = [*problem.model.parameters(), extra]
    optimizer = LearnedOptimizer(problem.model, learned_rule("layer_units"), params=parameters)
    problem.backward()
    extra.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(extra, torch.ones(3))
    state = optimizer.state[optimizer.in_order()[0]]
    assert float(state["teleport.count"]) == 1


@pytest.mark.parametrize("why", ["half precision", "parameters alone", "no symmetry"])
def test_what_cannot_be_scaled_gets_updates_alone(why: str) -> None:
    rule = learned_rule("layer_units")
    problem = models.perceptron()
    model: nn.Module = problem.model
    given: object = model
    if why == "half precision":
        model.bfloat16()
    elif why == "parameters alone":
        given = [*model.parameters()]
    else:
        given = nn.Sequential(nn.Linear(6, 13), nn.Tanh(), nn.Linear(13, 3))
    with pytest.warns(UserWarning, match="updates only, no teleports"):
        optimizer = LearnedOptimizer(given, rule)  # type: ignore[arg-type]
    for p in optimizer.in_order():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in optimizer.in_order()]
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, optimizer.in_order(), strict=True))


def test_general_linear_symmetries_have_units_too() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    (symmetry,) = metaopt.symmetries(model)
    assert symmetry.group is Group.LINEAR
    shapes = {name: p.shape for name, p in model.named_parameters()}
    units = units_of([symmetry], shapes)
    assert units is not None
    assert units.sizes == (4,)


def test_chains_have_the_units_of_their_layers() -> None:
    units = HiddenUnits.of_chain([(SIZES[1], SIZES[0]), (SIZES[2], SIZES[1])])
    assert units.sizes == (SIZES[1],)
    assert [(s.tensor, s.sign) for s in units.stretches] == [(0, MAKES), (1, READS)]
