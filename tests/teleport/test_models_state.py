"""Teleports of real models: gradients and optimizer state move by the inverse transpose."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import learned_rule
from models import UPDATES, hand_made
from teleports import (
    differ,
    every_moving,
)
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import ZOO, Specimen

import metaopt
from metaopt.meta.build import meta_optimizer
from metaopt.rules.base import Rule
from metaopt.rules.hand_made import Momentum
from metaopt.symmetry.groups import Group, Slot, Symmetry


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    leaves = pytree.tree_leaves(model(x))
    return torch.stack([(y - 1).square().sum() for y in leaves]).sum()


@every_moving
def test_gradients_move_to_those_at_the_new_weights(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model().double().eval()
    x = specimen.inputs(dtype=torch.float64)
    _loss(model, x).backward()
    metaopt.teleport(model, 1.0, 2, metaopt.symmetries(model))
    carried = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    _loss(model, x).backward()
    wanted = [p.grad for p in model.parameters() if p.grad is not None]
    for found, gradient in zip(carried, wanted, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)


def _sgd(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def _adam(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr, amsgrad=True)


def _adagrad(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=lr)


def _learned(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return metaopt.LearnedOptimizer(model, learned_rule(UPDATES), lr=lr)


def _steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, specimen: Specimen, first: int = 0
) -> None:
    for seed in range(first, first + 3):
        optimizer.zero_grad()
        _loss(model, specimen.inputs(seed, dtype=torch.float64)).backward()
        optimizer.step()


@pytest.mark.parametrize("make", [_sgd, _adam, _adagrad], ids=["sgd", "adam", "adagrad"])
@pytest.mark.parametrize("name", ["autoencoder", "block", "cnn", "grouped"])
def test_transported_state_is_that_of_gradients_at_the_new_weights(
    name: str, make: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    # With a learning rate of 0 the state is that of several batches at one point.
    specimen = ZOO[name]
    model = specimen.model().double().eval()
    optimizer = make(model)
    _steps(model, optimizer, specimen)
    found = metaopt.symmetries(model)
    metaopt.teleport(model, 1.0, 2, found, optimizer=optimizer)
    fresh = make(model)
    _steps(model, fresh, specimen)
    general = {slot.path for s in found if s.group is Group.LINEAR for slot in s.slots}
    compared = 0
    for path, parameter in model.named_parameters():
        if make is not _sgd and path in general:
            assert parameter not in optimizer.state
            continue
        for key, wanted in fresh.state[parameter].items():
            torch.testing.assert_close(optimizer.state[parameter][key], wanted)
            compared += 1
    assert compared


def _layer(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return metaopt.LearnedOptimizer(model, learned_rule("layer"), lr=lr)


@pytest.mark.parametrize("name", ["cnn", "grouped", "prelu"])
def test_the_means_of_a_learned_rule_are_transported(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model().double().eval()
    optimizer = _layer(model)
    _steps(model, optimizer, specimen)
    found = [s for s in metaopt.symmetries(model) if s.group is Group.SCALING]
    metaopt.teleport(model, 1.0, 2, found, optimizer=optimizer)
    fresh = _layer(model)
    _steps(model, fresh, specimen)
    for parameter in model.parameters():
        for key in ("update.m", "update.v", "update.count"):
            wanted = fresh.state[parameter][key]
            torch.testing.assert_close(optimizer.state[parameter][key], wanted)
    assert found


def test_hand_made_rules_are_transported_as_torchs() -> None:
    specimen = ZOO["cnn"]
    states = []
    for make in (_sgd, lambda model: _ruled(model, Momentum(1e-13, 0.9))):
        model = specimen.model().double().eval()
        optimizer = make(model)
        _steps(model, optimizer, specimen)
        metaopt.teleport(model, 2.0, 1, metaopt.symmetries(model), optimizer=optimizer)
        key = "momentum_buffer" if make is _sgd else "update.m"
        states.append([optimizer.state[p][key].view_as(p) for p in model.parameters()])
    for wanted, found in zip(*states, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def _ruled(model: nn.Module, rule: Rule) -> torch.optim.Optimizer:
    return metaopt.LearnedOptimizer(model, hand_made(rule))


@pytest.mark.parametrize(
    "make", [_sgd, _adam, _learned, _layer], ids=["sgd", "adam", "learned", "layer"]
)
def test_training_commutes_with_permutations(
    make: Callable[[nn.Module, float], torch.optim.Optimizer],
) -> None:
    specimen = ZOO["cnn 1d"]
    first = specimen.model().double().eval()
    found = [s for s in metaopt.symmetries(first, permutations=True) if s.group == "permutation"]
    optimizer = make(first, 1e-3)
    _steps(first, optimizer, specimen)
    second = copy.deepcopy(first)
    other = make(second, 1e-3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    metaopt.teleport(first, 1.0, 0, found, optimizer=optimizer)
    _steps(first, optimizer, specimen, first=5)
    _steps(second, other, specimen, first=5)
    metaopt.teleport(second, 1.0, 0, found)
    for w, v in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(w, v, rtol=1e-9, atol=1e-9)


def test_reset_forgets_the_state_of_what_moves_alone() -> None:
    specimen = ZOO["residual"]
    model = specimen.model().double()
    optimizer = _sgd(model)
    _steps(model, optimizer, specimen)
    found = metaopt.teleport(model, optimizer=optimizer, state="reset")
    moved = {slot.path for s in found for slot in s.slots}
    kept = {path for path, p in model.named_parameters() if p in optimizer.state}
    assert moved
    assert kept == {path for path, _ in model.named_parameters()} - moved


@pytest.mark.parametrize("state", ["transport", "reset"])
@pytest.mark.parametrize("kind", [UPDATES, "adam"])
def test_learned_states_are_reset_but_for_relabellings(kind: str, state: str) -> None:
    specimen = ZOO["mlp"]
    model = specimen.model().double()
    config = learned_rule(kind).config
    rules = config.rules.model_copy(update={"teleport": None})
    config = config.model_copy(update={"rules": rules, "teleporter": None})
    rule = metaopt.LearnedRule(meta_optimizer(config), config)
    optimizer = metaopt.LearnedOptimizer(model, rule, lr=1e-3)
    _steps(model, optimizer, specimen)
    stated = {path for path, p in model.named_parameters() if optimizer.state[p]}
    found = metaopt.teleport(model, optimizer=optimizer, state=state)
    moved = {slot.path for s in found for slot in s.slots}
    kept = {path for path, p in model.named_parameters() if optimizer.state.get(p)}
    # Adam counts its steps once for all parameters.
    assert kept == (set() if kind == "adam" else stated - moved)
    assert moved
    _steps(model, optimizer, specimen)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_learned_state_that_begins_anew_is_told() -> None:
    specimen = ZOO["mlp"]
    model = specimen.model().double()
    optimizer = metaopt.LearnedOptimizer(model)
    _steps(model, optimizer, specimen)
    with pytest.warns(UserWarning, match=r"state='transport': .* begins anew"):
        metaopt.teleport(model, optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Nothing is kept that could begin anew.
        metaopt.teleport(model, optimizer=metaopt.LearnedOptimizer(model))
        metaopt.teleport(model, optimizer=torch.optim.AdamW(model.parameters()))


def test_a_translation_leaves_learned_states() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3)).double()
    optimizer = _learned(model)
    x = torch.ones(2, 4, dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).softmax(-1)[:, 0].sum().backward()
        optimizer.step()
    slots = Slot("0", "weight", 0), Slot("0", "bias", 0)
    allows = frozenset({Group.TRANSLATION})
    found = [Symmetry("0", Group.TRANSLATION, 3, slots, (), allows=allows, free=5)]
    kept = copy.deepcopy([dict(optimizer.state[p]) for p in model.parameters()])
    before = model(x).softmax(-1)
    metaopt.teleport(model, symmetries=found, optimizer=optimizer)
    torch.testing.assert_close(model(x).softmax(-1), before)
    states = [dict(optimizer.state[p]) for p in model.parameters()]
    assert all(states)
    torch.testing.assert_close(states, kept, rtol=0, atol=0)


def test_unknown_state_is_refused_before_anything_moves() -> None:
    model = ZOO["mlp"].model()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"found Rprop: use state='reset'"):
        metaopt.teleport(model, optimizer=torch.optim.Rprop(model.parameters()))
    with pytest.raises(ValueError, match="transport, reset, found 'keep'"):
        metaopt.teleport(model, optimizer=_sgd(model), state="keep")
    assert not differ(model, before)


def _losses_after_a_teleport(policy: str) -> list[float]:
    """SGD with momentum for 20 steps, a teleport to where it is, and 6 steps more."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.LeakyReLU(0.1), torch.nn.Linear(16, 4)
    ).double()
    x, y = (torch.randn(128, size, dtype=torch.float64) for size in (8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for step in range(26):
        if step == 20 and policy == "left alone":
            metaopt.teleport(model, 1e-6, 0)
        elif step == 20:
            metaopt.teleport(model, 1e-6, 0, optimizer=optimizer, state=policy)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[20:]


def test_policies_agree_where_nothing_moves_but_for_what_a_reset_forgets() -> None:
    policies = ("transport", "reset", "left alone")
    moved, forgotten, left = map(_losses_after_a_teleport, policies)
    assert moved == pytest.approx(left, rel=1e-4)
    assert moved[0] == pytest.approx(forgotten[0], rel=1e-4)
    assert moved[5] != pytest.approx(forgotten[5], rel=1e-4)


class _Wrapper(torch.optim.Optimizer):
    """As Accelerate wraps: an optimizer with the real one in an attribute."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


class _Imitation:
    """As Lightning wraps: of the class of what is in it, with a state that nobody keeps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Imitation", (_Imitation, type(optimizer)), {})

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer


@pytest.mark.parametrize("state", ["transport", "reset"])
@pytest.mark.parametrize("make", [_adam, _layer, _learned], ids=["adam", "layer", "coordinate"])
def test_the_state_of_a_wrapped_optimizer_is_that_within(
    make: Callable[[nn.Module], torch.optim.Optimizer], state: str
) -> None:
    wraps: list[Callable[[torch.optim.Optimizer], Any]] = [
        lambda optimizer: optimizer,
        _Wrapper,
        _Imitation,
        lambda optimizer: _Wrapper(_Wrapper(optimizer)),
    ]
    found = []
    for wrap in wraps:
        model = ZOO["cnn"].model().double().eval()
        optimizer = make(model)
        _steps(model, optimizer, ZOO["cnn"])
        metaopt.teleport(model, optimizer=wrap(optimizer), state=state)
        found.append([dict(optimizer.state.get(p, {})) for p in model.parameters()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("state", ["transport", "reset"])
@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, _Wrapper])
def test_the_optimizer_of_another_model_is_refused(state: str, wrap: Any) -> None:
    model = ZOO["mlp"].model()
    kept = copy.deepcopy(model.state_dict())
    for other in (copy.deepcopy(model), ZOO["autoencoder"].model()):
        optimizer = wrap(torch.optim.SGD(other.parameters(), 0.1))
        with pytest.raises(ValueError, match=r"none of its \d+ parameters is one of this model's"):
            metaopt.teleport(model, optimizer=optimizer, state=state)
    assert all(torch.equal(tensor, kept[path]) for path, tensor in model.state_dict().items())
    # One that trains a part is this model's.
    metaopt.teleport(model, optimizer=torch.optim.SGD([model.get_parameter("5.bias")], 0.1))
    assert not torch.equal(model.get_parameter("0.weight"), kept["0.weight"])


@pytest.mark.parametrize("state", ["transport", "reset"])
@pytest.mark.parametrize("given", ["Adam", torch.optim.Adam, {}])
def test_what_is_no_optimizer_is_refused(state: str, given: Any) -> None:
    model = ZOO["mlp"].model()
    with pytest.raises(ValueError, match=r"optimizer: found (str|Adam|dict), expected"):
        metaopt.teleport(model, optimizer=given, state=state)
