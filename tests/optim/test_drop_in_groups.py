"""Groups that are changed by hand, parameters that are exchanged, options that are set later."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from cases import learned_rule
from models import UPDATES, Problem, equal, states, take_steps
from torch import Tensor, nn
from torch.optim import lr_scheduler

from metaopt import LearnedOptimizer
from metaopt.optim.inputs import require_no_capture

KINDS = [UPDATES, "layer", "adam"]
Parts = tuple[Problem, LearnedOptimizer]
every_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.filterwarnings("ignore:updates only:UserWarning")


def started(kind: str = UPDATES, make: Callable[[], Problem] = models.perceptron) -> Parts:
    problem = make()
    optimizer = LearnedOptimizer(problem.model, learned_rule(kind))
    take_steps(problem, optimizer, 2)
    return problem, optimizer


def moved(problem: Problem, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(before, problem.weights(), strict=True)]


def go_on(problem: Problem, optimizer: LearnedOptimizer) -> list[bool]:
    """Which parameters move; the optimizer can be saved, copied and loaded then."""
    before = problem.weights()
    take_steps(problem, optimizer, 1)
    found = moved(problem, before)
    copy.deepcopy((problem, optimizer))[1].load_state_dict(optimizer.state_dict())
    assert len(optimizer.state) == sum(len(group["params"]) for group in optimizer.param_groups)
    return found


@every_kind
def test_parameters_are_removed_and_appended_by_hand(kind: str) -> None:
    problem, optimizer = started(kind)
    parameters = optimizer.param_groups[0]["params"]
    first = parameters.pop(0)
    assert go_on(problem, optimizer) == [False, True, True, True]
    parameters.append(first)
    assert go_on(problem, optimizer) == [True, True, True, True]
    options = {"lr": 0.5, "weight_decay": 0.0}
    optimizer.param_groups[:] = [{"params": parameters[1:3]}, {"params": parameters[3:]}]
    for group in optimizer.param_groups:
        group.update(options)
    assert go_on(problem, optimizer) == [True, False, True, True]


@every_kind
def test_states_of_those_that_stay_go_on(kind: str) -> None:
    """Groups set anew by hand give the steps that they give from the start."""
    (one, by_hand), (other, plain) = started(kind), started(kind)
    parameters = by_hand.param_groups[0]["params"]
    options = {key: by_hand.param_groups[0][key] for key in ("lr", "weight_decay")}
    by_hand.param_groups = [options | {"params": [p]} for p in reversed(parameters)]
    for each in ((one, by_hand), (other, plain)):
        take_steps(*each, 2)
    assert equal(one.weights(), other.weights())


@every_kind
@pytest.mark.parametrize("is_saved_first", [False, True])
def test_an_embedding_is_exchanged_for_a_longer_one(kind: str, is_saved_first: bool) -> None:
    problem, optimizer = started(kind, models.transformer)
    model: Any = problem.model
    old, model.embedding = model.embedding.weight, nn.Embedding(10, 8)
    before = problem.weights()
    with pytest.raises(RuntimeError, match=r"embedding.weight is another .*\['params'\]\[1\]"):
        take_steps(problem, optimizer, 1)
    assert not any(moved(problem, before))
    parameters = optimizer.param_groups[0]["params"]
    parameters[next(i for i, p in enumerate(parameters) if p is old)] = model.embedding.weight
    if is_saved_first:
        assert len(optimizer.state_dict()["state"]) == len(parameters)
    assert all(go_on(problem, optimizer))


@every_kind
def test_parameters_that_grow_in_place_begin_anew(kind: str) -> None:
    problem, optimizer = started(kind, models.transformer)
    weight = next(p for n, p in problem.model.named_parameters() if n == "embedding.weight")
    others = {p: state for p, state in states(optimizer).items() if p is not weight}
    problem.backward()
    weight.data = torch.cat([weight.data, weight.data[:3]])
    with (
        pytest.warns(UserWarning, match=r"embedding.weight has another shape by now, \[10, 8\]"),
        pytest.raises(
            RuntimeError, match=r"gradient of embedding.weight: found \[7, 8\] of float32"
        ),
    ):
        optimizer.step()
    weight.grad = None
    for p, state in others.items():
        assert all(torch.equal(optimizer.state[p][key], state[key]) for key in state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(go_on(problem, optimizer))


def exchange(optimizer: LearnedOptimizer, **options: Any) -> None:
    optimizer.param_groups[0].update(options)


BY_HAND: dict[str, tuple[Callable[[LearnedOptimizer], Any], str]] = {
    "twice": (
        lambda o: o.param_groups[0]["params"].append(o.param_groups[0]["params"][1]),
        r"\[4\] is param_groups\[0\]\['params'\]\[1\]: expected each parameter once",
    ),
    "text": (lambda o: o.param_groups[0]["params"].append("w"), "found str, expected a parameter"),
    "computed": (
        lambda o: o.param_groups[0]["params"].append(o.param_groups[0]["params"][0] * 2),
        "a tensor that was computed, expected a parameter",
    ),
    "generator": (lambda o: exchange(o, params=iter([])), "found list_iterator, expected a list"),
    "nothing": (lambda o: o.param_groups.clear(), "found no parameters but empty ones"),
    "device": (
        lambda o: o.param_groups[0]["params"].append(nn.Parameter(torch.ones(2, device="meta"))),
        "one device, found cpu, meta",
    ),
    "bare group": (
        lambda o: o.param_groups.append({"params": [nn.Parameter(torch.ones(2))]}),
        r"param_groups\[1\] lr: found None",
    ),
    "negative": (lambda o: exchange(o, lr=-0.1), r"param_groups\[0\] lr: found -0.1, expected a"),
    "nan": (lambda o: exchange(o, lr=math.nan), "lr: found nan"),
    "inf": (lambda o: exchange(o, lr=math.inf), "lr: found inf"),
    "large": (lambda o: exchange(o, lr=10**400), "lr: found 1000"),
    "tensor": (lambda o: exchange(o, lr=torch.tensor(-1.0)), "lr: found -1.0"),
    "tensors": (lambda o: exchange(o, lr=torch.ones(2)), "lr: found tensor"),
    "none": (lambda o: exchange(o, weight_decay=None), "weight_decay: found None"),
    "word": (lambda o: exchange(o, weight_decay="0.1"), "weight_decay: found '0.1'"),
    "decay": (lambda o: exchange(o, weight_decay=-1), "weight_decay: found -1"),
    "schedule": (
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 - 2 * (step + 1)),
        "lr: found -1.0",
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_cannot_be_is_refused_in_one_line(name: str) -> None:
    problem, optimizer = started()
    change, message = BY_HAND[name]
    change(optimizer)
    before, kept = problem.weights(), states(optimizer)
    with pytest.raises(ValueError, match=message) as raised:
        take_steps(problem, optimizer, 1)
    assert "\n" not in str(raised.value)
    assert not any(moved(problem, before))
    for p, state in kept.items():
        assert all(torch.equal(optimizer.state[p][key], state[key]) for key in state)


@pytest.mark.parametrize("rate", [1, torch.tensor(1.0), torch.tensor([1.0])])
def test_numbers_of_any_kind_are_rates(rate: Any) -> None:
    (problem, optimizer), (plain, other) = started(), started()
    exchange(optimizer, lr=rate)
    for each in ((problem, optimizer), (plain, other)):
        take_steps(*each, 1)
    assert equal(problem.weights(), plain.weights())


def test_a_group_that_does_not_fit_is_not_added() -> None:
    problem, optimizer = started()
    for parameter, options in (
        (nn.Parameter(torch.ones(2, device="meta")), {}),
        (nn.Parameter(torch.ones(2, dtype=torch.complex64)), {}),
        (nn.Parameter(torch.ones(2)), {"lr": -1.0}),
    ):
        with pytest.raises(ValueError, match="found"):
            optimizer.add_param_group({"params": [parameter], **options})
        assert len(optimizer.param_groups) == 1
    assert all(go_on(problem, optimizer))


# What a step is given.


@pytest.mark.parametrize("kind", ["layer", "coordinate_directions_update"])
def test_the_loss_is_a_number_or_none(kind: str) -> None:
    def step(returned: Callable[[Tensor], Any]) -> Any:
        problem = models.perceptron()
        optimizer = LearnedOptimizer(problem.model, learned_rule(kind))
        found = optimizer.step(lambda: returned(problem.backward()))
        return problem.weights(), found

    expected, _ = step(lambda loss: loss)
    for returned in (lambda loss: loss[None], lambda loss: loss.double(), float):
        assert equal(step(returned)[0], expected)
    unheard, nothing = step(lambda loss: None)
    assert nothing is None
    # Of the two rules one hears it off a chain.
    assert equal(unheard, expected) == (kind != "layer")
    assert equal(step(lambda loss: 1)[0], step(lambda loss: 1.0)[0])
    for wrong, message in (
        (lambda loss: {"loss": loss}, "it returns a dict, expected the loss"),
        (lambda loss: (loss, 1), "it returns a tuple"),
        (lambda loss: torch.ones(3), r"a tensor of shape \[3\] and torch.float32"),
        (lambda loss: loss * 1j, "torch.complex64"),
        (lambda loss: "1.5", "it returns a str"),
    ):
        with pytest.raises(ValueError, match=message):
            step(wrong)


def test_a_step_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    require_no_capture(torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"call step\(\) after replay"):
        require_no_capture(torch.device("cuda"))


def test_gradients_of_another_kind() -> None:
    problem, optimizer = started()
    plain, other = copy.deepcopy((problem, optimizer))
    for each in (problem, plain):
        each.backward()
    first = next(problem.model.parameters())
    assert first.grad is not None
    first.grad_dtype = None
    gradient = first.grad
    first.grad = gradient.double()
    optimizer.step()
    other.step()
    assert equal(problem.weights(), plain.weights())
    first.grad = gradient.to(torch.complex64)
    with pytest.raises(RuntimeError, match=r"gradient of 0.weight: found \[13, 6\] of complex64"):
        optimizer.step()
    assert equal(problem.weights(), plain.weights())
