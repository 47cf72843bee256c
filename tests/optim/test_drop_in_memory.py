"""What is remembered for good survives every way to copy, save and change an optimizer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import models
import pytest
import torch
from cases import RULES, learned_rule
from models import Problem, equal, saved, take_steps
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import metaopt
from metaopt import LearnedOptimizer

pytestmark = pytest.mark.filterwarnings("ignore:updates only:UserWarning")

WHY = "the data changes from step to step"
Parts = tuple[Problem, LearnedOptimizer]


def fresh(kind: str = "coordinate_lstm", make: Callable[[], Problem] = models.chain) -> Parts:
    problem = make().to(torch.float64)
    return problem, LearnedOptimizer(problem.model, learned_rule(kind), lr=0.01, full_batch=True)


def turned_off() -> Parts:
    """Teleports are off, not by structure but by what was seen on the way."""
    problem, optimizer = fresh()
    take_steps(problem, optimizer, 1)
    weights = problem.model.parameters()
    problem.backward()
    next(weights).grad = None
    optimizer.step()
    assert optimizer.teleports_off is not None
    return problem, optimizer


def through_file(path: Path, parts: Parts) -> Parts:
    torch.save(parts, path / "whole.pt")
    found: Parts = torch.load(path / "whole.pt", weights_only=False)
    return found


def through_checkpoint(path: Path, parts: Parts, flat: bool) -> Parts:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    problem, optimizer = fresh()
    problem.model.load_state_dict(parts[0].model.state_dict())
    content = {"optimizer": get_optimizer_state_dict(parts[0].model, parts[1], options=options)}
    save(content, checkpoint_id=path / "checkpoint")
    content = {"optimizer": get_optimizer_state_dict(problem.model, optimizer, options=options)}
    load(content, checkpoint_id=path / "checkpoint")
    set_optimizer_state_dict(problem.model, optimizer, content["optimizer"], options=options)
    return problem, optimizer


def through_state(parts: Parts, without: tuple[str, ...] = ()) -> Parts:
    problem, optimizer = fresh()
    problem.model.load_state_dict(parts[0].model.state_dict())
    state = saved(parts[1].state_dict())
    for group in state["param_groups"]:
        for name in without:
            del group[name]
    optimizer.load_state_dict(state)
    return problem, optimizer


WAYS: dict[str, Callable[[Path, Parts], Parts]] = {
    "deepcopy": lambda path, parts: copy.deepcopy(parts),
    "copy": lambda path, parts: (parts[0], copy.copy(parts[1])),
    "pickle": lambda path, parts: pickle.loads(pickle.dumps(parts)),
    "torch.save": through_file,
    "state_dict": lambda path, parts: through_state(parts),
    "state_dict of before": lambda path, parts: through_state(
        parts, ("teleports_off", "steps", "rule")
    ),
    "checkpoint": lambda path, parts: through_checkpoint(path, parts, flat=False),
    "flat checkpoint": lambda path, parts: through_checkpoint(path, parts, flat=True),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_teleports_stay_off_and_training_goes_on(way: str, tmp_path: Path) -> None:
    parts = turned_off()
    problem, optimizer = WAYS[way](tmp_path, copy.deepcopy(parts))
    assert optimizer.teleports_off == parts[1].teleports_off
    for each in ((problem, optimizer), parts):
        take_steps(*each, 2)
    assert equal(problem.weights(), parts[0].weights())
    assert optimizer.state_dict()["teleports_off"] == parts[1].teleports_off
    if "before" not in way:
        assert [group["steps"] for group in optimizer.param_groups] == [4]


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.float64))]}),
        lambda o: o.state.clear(),
        lambda o: o.param_groups[0]["params"].pop(),
        lambda o: setattr(o, "param_groups", [{**o.param_groups[0]}]),
        lambda o: o.load_state_dict(fresh()[1].state_dict()),
    ],
)
def test_teleports_stay_off_through_changes(change: Callable[[LearnedOptimizer], None]) -> None:
    problem, optimizer = turned_off()
    why = optimizer.teleports_off
    change(optimizer)
    assert optimizer.teleports_off == why
    take_steps(problem, optimizer, 1)
    assert {group["teleports_off"] for group in optimizer.param_groups} == {why}


def test_what_structure_forbids_is_looked_at_again_with_other_parameters() -> None:
    problem = models.perceptron()
    first, *others = problem.model.parameters()
    rule = learned_rule("layer_units")
    with pytest.warns(UserWarning, match="no hidden units can be scaled"):
        optimizer = LearnedOptimizer(problem.model, rule, params=others)
    assert optimizer.teleports_off is not None
    optimizer.add_param_group({"params": [first]})
    assert optimizer.teleports_off is None
    assert [group["teleports_off"] for group in optimizer.param_groups] == [None, None]
    with pytest.warns(UserWarning, match="no hidden units can be scaled"):
        other = LearnedOptimizer(problem.model, rule, params=others)
    state = other.state_dict()
    state["param_groups"][0]["teleports_off"] = WHY
    other.load_state_dict(state)
    other.add_param_group({"params": [first]})
    assert other.teleports_off == WHY


# No two tensors of the state share an entry, and what is written in place counts.


def addresses(tensor: torch.Tensor) -> list[int]:
    steps = torch.zeros(tensor.shape, dtype=torch.long)
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        shape = [1] * tensor.dim()
        shape[axis] = size
        steps = steps + (torch.arange(size) * stride).reshape(shape)
    return (tensor.data_ptr() + steps.flatten() * tensor.element_size()).tolist()


@pytest.mark.parametrize("kind", RULES)
def test_no_entry_of_the_state_is_anothers(kind: str) -> None:
    problem, optimizer = fresh(kind)
    for _ in range(3):
        tensors = [t for state in optimizer.state.values() for t in state.values()]
        found = [address for tensor in tensors for address in addresses(tensor)]
        assert len(found) == len(set(found)) == sum(tensor.numel() for tensor in tensors)
        take_steps(problem, optimizer, 1)


@pytest.mark.parametrize("kind", ["coordinate_lstm", "layer_units", "adam", "lstm_directions"])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("is_exchanged", [False, True])
def test_states_written_in_place_are_those_of_the_next_step(
    kind: str, steps: int, is_exchanged: bool
) -> None:
    make = models.perceptron if "units" in kind else models.chain
    problem, optimizer = fresh(kind, make)
    take_steps(problem, optimizer, 3)
    resumed, other = fresh(kind, make)
    take_steps(resumed, other, steps)
    resumed.model.load_state_dict(problem.model.state_dict())
    for mine, p in zip(problem.model.parameters(), resumed.model.parameters(), strict=True):
        for key, value in optimizer.state[mine].items():
            if is_exchanged:
                # As offloading does it: the object stays, its memory is another.
                other.state[p][key].data = other.state[p][key].data.clone()
            other.state[p][key].copy_(value)
    if other._stepper.chain is not None:
        assert not steps or other.teleports_off is None
    for each in ((problem, optimizer), (resumed, other)):
        take_steps(*each, 2)
    assert equal(problem.weights(), resumed.weights())


def test_what_was_loaded_is_a_copy() -> None:
    problem, optimizer = fresh("layer", models.perceptron)
    take_steps(problem, optimizer, 2)
    state = optimizer.state_dict()
    other = copy.deepcopy(optimizer)
    other.load_state_dict(state)
    kept = copy.deepcopy(state)
    for own in other.state.values():
        for value in own.values():
            value.fill_(7.0)
    for index, own in kept["state"].items():
        assert all(torch.equal(state["state"][index][key], own[key]) for key in own)


def test_empty_parameters_have_a_place() -> None:
    problem = models.perceptron()
    empty = nn.Parameter(torch.empty(0, 3))
    optimizer = LearnedOptimizer([empty, *problem.model.parameters()], learned_rule("layer"))
    empty.grad = torch.empty(0, 3)
    take_steps(problem, optimizer, 2)
    state = optimizer.state_dict()
    assert [*state["state"]] == [0, 1, 2, 3, 4]
    optimizer.load_state_dict(saved(state))
    with pytest.raises(ValueError, match="no parameters but empty ones"):
        metaopt.LearnedOptimizer([empty], learned_rule("layer"))


@pytest.mark.parametrize("kind", ["layer", "adam", "coordinate_lstm"])
def test_a_tensor_that_was_taken_out_begins_anew(kind: str) -> None:
    problem, optimizer = fresh(kind)
    take_steps(problem, optimizer, 2)
    first = next(problem.model.parameters())
    expected = {key: value.shape for key, value in optimizer.state[first].items()}
    for key in expected:
        del optimizer.state[first][key]
        take_steps(problem, optimizer, 1)
        assert {k: value.shape for k, value in optimizer.state[first].items()} == expected
