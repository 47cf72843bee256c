"""What does not fit is refused before anything is changed; hooks are heard."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from cases import learned_rule
from models import UPDATES, Problem, saved, take_steps
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, RMSprop, lr_scheduler

from metaopt import LearnedOptimizer


def wide() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 26), nn.LeakyReLU(0.1), nn.Linear(26, 3))
    return Problem(model, torch.randn(10, 6), torch.arange(10) % 3)


def trained(kind: str = UPDATES, make: Callable[[], Problem] = models.perceptron) -> Any:
    problem = make()
    optimizer = LearnedOptimizer(problem.model, learned_rule(kind))
    take_steps(problem, optimizer, 2)
    return optimizer


def is_same(some: Any, other: Any) -> bool:
    if isinstance(some, dict):
        return some.keys() == other.keys() and all(is_same(some[k], other[k]) for k in some)
    if isinstance(some, list):
        return len(some) == len(other) and all(map(is_same, some, other))
    return torch.equal(some, other) if isinstance(some, torch.Tensor) else bool(some == other)


def refuses(optimizer: LearnedOptimizer, state: Any, message: str) -> None:
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message) as raised:
        optimizer.load_state_dict(state)
    assert "\n" not in str(raised.value)
    assert is_same(before, optimizer.state_dict())


@pytest.mark.parametrize("kind", [AdamW, SGD, Adagrad, RMSprop])
@pytest.mark.parametrize("steps", [0, 1])
def test_states_of_other_optimizers(kind: Any, steps: int) -> None:
    problem = models.perceptron()
    other = kind(problem.model.parameters())
    take_steps(problem, other, steps)
    refuses(trained(), other.state_dict(), "no LearnedOptimizer saves|holds (step|momentum_buffer)")


@pytest.mark.parametrize("kind", [UPDATES, "layer", "layer_units", "adam_units"])
def test_states_of_other_models(kind: str) -> None:
    refuses(trained(kind), trained(kind, wide).state_dict(), "the state of 0.weight: .* shape")
    state = trained(kind, models.convolutional).state_dict()
    refuses(trained(kind), state, r"found groups of \[8\] parameters, this optimizer has .* \[4\]")


@pytest.mark.parametrize("is_old", [False, True])
def test_states_of_other_rules(is_old: bool) -> None:
    def state(kind: str) -> Any:
        found = saved(trained(kind).state_dict())
        for group in found["param_groups"]:
            for name in ("teleports_off", "steps", "rule") if is_old else ():
                del group[name]
        return found

    refuses(
        trained(),
        state("layer"),
        "the state of 0.weight (holds|lacks) " if is_old else "saved with the rule layer",
    )
    refuses(
        trained("layer_units"),
        state("layer"),
        "lacks teleport" if is_old else "saved with the rule",
    )


def test_another_rule_of_the_same_shapes() -> None:
    rule = learned_rule(UPDATES)
    with torch.no_grad():
        next(rule.optimizer.parameters()).add_(1.0)
    problem = models.perceptron()
    other = LearnedOptimizer(problem.model, rule)
    refuses(trained(), other.state_dict(), "was saved with the rule")
    # The same one is the same in every dtype and under every name.
    rule = learned_rule(UPDATES)
    rule.config = rule.config.model_copy(update={"label": "of another name"})
    rule.optimizer.to(torch.float32)
    trained().load_state_dict(LearnedOptimizer(problem.model, rule).state_dict())


def recast(state: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Every tensor of a parameter's state as something else."""
    own = state["state"][1]
    own.update({key: change(value) for key, value in own.items()})


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "lr": (lambda s: s["param_groups"][0].pop("lr"), "lr: found None"),
    "negative": (lambda s: s["param_groups"][0].update(lr=-1.0), "lr: found -1.0"),
    "nan": (lambda s: s["param_groups"][0].update(weight_decay=math.nan), "decay: found nan"),
    "groups": (lambda s: s["param_groups"].append({"params": []}), r"groups of \[4, 0\]"),
    "params": (lambda s: s["param_groups"][0].pop("params"), "found no 'params'"),
    "twice": (lambda s: s["param_groups"][0].update(params=[0, 0, 2, 3]), "found the parameters 0"),
    "lists": (lambda s: s["param_groups"][0].update(params=[[0], 1, 2, 3]), r"parameters \[0\], 1"),
    "steps": (lambda s: s["param_groups"][0].update(steps="many"), "found 'many', expected a"),
    "rule": (lambda s: s["param_groups"][0].update(rule=3), "found 3, expected text"),
    "missing": (lambda s: s["state"][1].pop("update.h0"), "of 0.bias lacks update.h0"),
    "more": (lambda s: s["state"][1].update({"update.x": torch.ones(1)}), "holds update.x"),
    "no numbers": (lambda s: recast(s, lambda t: t.to("meta")), r"is torch\..* on meta, expected"),
    "sparse": (lambda s: recast(s, Tensor.to_sparse), "expected a dense tensor of floating"),
    "integers": (lambda s: recast(s, Tensor.long), "is torch.int64 on cpu, expected a dense"),
    "number": (lambda s: s["state"][1].update({3: torch.ones(1)}), "holds 3"),
    "list": (lambda s: s["state"][1].update({"update.h0": [1.0]}), "update.h0 is list"),
    "complex": (lambda s: s["state"][1].update({"update.h0": torch.ones(1) * 1j}), "is torch.comp"),
    "no state": (lambda s: s["state"].update({1: None}), "found a NoneType"),
    "nobody's": (lambda s: s["state"].update({9: {}}), "no group holds 9"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_broken_states(name: str) -> None:
    optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    change, message = CHANGES[name]
    change(state)
    refuses(optimizer, state, message)


def test_what_is_no_state() -> None:
    optimizer = trained()
    schedule = lr_scheduler.StepLR(optimizer, 3).state_dict()
    weights = models.perceptron().model.state_dict()
    for state in (None, [1], {}, schedule, weights, {"state.0.weight.update.h0": 1}):
        refuses(optimizer, state, "state_dict: found")


def test_parameters_without_a_saved_state_begin_anew() -> None:
    state = copy.deepcopy(trained().state_dict())
    state["state"].pop(0)
    state["state"][1] = {}
    optimizer = trained()
    optimizer.load_state_dict(state)
    first, second, third, _ = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    assert not any(bool(value.any()) for own in (first, second) for value in own.values())
    assert any(bool(value.any()) for value in third.values())


def test_hooks_change_what_is_loaded_and_what_was() -> None:
    state = saved(trained().state_dict())
    optimizer = trained()
    (first, *_) = optimizer.param_groups[0]["params"]

    def slower(_: Any, given: Any) -> Any:
        groups = [group | {"lr": 0.25} for group in given["inner"]["param_groups"]]
        return given["inner"] | {"param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(slower)
    seen = []

    def overwrite(own: Any) -> None:
        seen.append(own.state[first]["update.h0"].clone())
        own.state[first]["update.h0"].fill_(7.0)

    optimizer.register_load_state_dict_post_hook(overwrite)
    optimizer.load_state_dict({"inner": state})
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert torch.equal(seen[0], state["state"][0]["update.h0"])
    assert bool((optimizer.state[first]["update.h0"] == 7.0).all())
    other = trained()
    other.register_load_state_dict_pre_hook(lambda own, given: {"state": {}})
    refuses(other, state, "found state, expected 'state' and 'param_groups'")


def test_hooks_change_what_is_saved() -> None:
    optimizer = trained()
    optimizer.register_state_dict_pre_hook(lambda own: own.param_groups[0].update(lr=0.125))
    optimizer.register_state_dict_post_hook(lambda own, state: {"only": state})
    state = optimizer.state_dict()
    assert [*state] == ["only"]
    assert state["only"]["param_groups"][0]["lr"] == 0.125
    assert state["only"]["teleports_off"] is None
