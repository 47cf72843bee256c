"""A step that would leave numbers that are not finite is not taken, and says so."""

from __future__ import annotations

import copy
import math
import pickle
import weakref
from collections.abc import Callable

import models
import pytest
import torch
from cases import learned_rule
from models import UPDATES, Problem, equal, hand_made, take_steps
from torch import Tensor, nn

import metaopt
from metaopt import LearnedOptimizer, NonFiniteError
from metaopt.optim import finite
from metaopt.optim.stepper import Advance
from metaopt.rules.hand_made import GradientDescent

pytestmark = pytest.mark.filterwarnings("ignore:updates only:UserWarning")

KINDS = ["layer_units", UPDATES, "adam_units", "coordinate_lstm"]
Parts = tuple[Problem, LearnedOptimizer]
Spoil = Callable[[nn.Parameter], object]


def gradient(p: nn.Parameter) -> Tensor:
    assert p.grad is not None
    return p.grad


SPOILED: dict[str, tuple[Spoil, str]] = {
    "nan gradient": (
        lambda p: gradient(p).view(-1)[0].fill_(math.nan),
        "the gradient of 2.bias is not finite",
    ),
    "infinite gradient": (
        lambda p: gradient(p).view(-1)[0].fill_(-math.inf),
        "the gradient of 2.bias is not finite",
    ),
    "nan weight": (lambda p: p.data.view(-1)[0].fill_(math.nan), "2.bias is not finite"),
}


def started(kind: str) -> Parts:
    problem = models.perceptron()
    optimizer = LearnedOptimizer(problem.model, learned_rule(kind), lr=0.01)
    take_steps(problem, optimizer, 2)
    return problem, optimizer


def snapshot(problem: Problem, optimizer: LearnedOptimizer) -> list[Tensor]:
    states = [t for state in optimizer.state.values() for t in state.values()]
    # What is no number is compared as one.
    return [t.detach().clone().nan_to_num(123.0) for t in [*problem.weights(), *states]]


def spoiled(kind: str, name: str) -> Parts:
    problem, optimizer = started(kind)
    problem.backward()
    SPOILED[name][0]([*problem.model.parameters()][3])
    return problem, optimizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPOILED)
def test_the_step_is_not_taken_and_training_goes_on(kind: str, name: str) -> None:
    problem, optimizer = spoiled(kind, name)
    before, options = snapshot(problem, optimizer), copy.deepcopy(optimizer.param_groups[0])
    with pytest.raises(NonFiniteError, match=f"^step 3: {SPOILED[name][1]}; ") as raised:
        optimizer.step()
    assert "\n" not in str(raised.value)
    assert equal(snapshot(problem, optimizer), before)
    assert options["steps"] == optimizer.param_groups[0]["steps"] == 2
    if "gradient" in name:
        plain = started(kind)
        for each in ((problem, optimizer), plain):
            take_steps(*each, 2)
        assert equal(snapshot(problem, optimizer), snapshot(*plain))


def test_what_overflows_on_the_way() -> None:
    problem, optimizer = started("layer")
    problem.backward()
    gradient([*problem.model.parameters()][3]).fill_(1e30)
    before = snapshot(problem, optimizer)
    with pytest.raises(NonFiniteError, match=r"step 3: update.v of 2.bias in the rule's state"):
        optimizer.step()
    assert equal(snapshot(problem, optimizer), before)
    # Sums overflow where no entry does.
    parameter = nn.Parameter(torch.full((8,), 3e38))
    descent = LearnedOptimizer([parameter], hand_made(GradientDescent(1.0)))
    parameter.grad = torch.full((8,), 1e38)
    descent.step()
    torch.testing.assert_close(parameter.detach(), torch.full((8,), 2e38))
    parameter.grad = torch.full((8,), -3e38)
    with pytest.raises(NonFiniteError, match=r"step 2: param_groups\[0\]\['params'\]\[0\] would"):
        descent.step()
    assert bool(parameter.isfinite().all())


def test_rounding_to_half_precision_may_overflow() -> None:
    parameter = nn.Parameter(torch.full((3,), 6e4, dtype=torch.float16))
    optimizer = LearnedOptimizer([("w", parameter)], hand_made(GradientDescent(1.0)))
    parameter.grad = torch.full((3,), -1e4, dtype=torch.float16)
    with pytest.raises(NonFiniteError, match="step 1: w would not be finite any more"):
        optimizer.step()
    assert bool((parameter == 6e4).all())
    parameter.grad = torch.full((3,), 1e4, dtype=torch.float16)
    optimizer.step()
    assert bool((parameter == 5e4).all())


def test_steps_are_counted_over_resumed_runs() -> None:
    problem, optimizer = started(UPDATES)
    other = LearnedOptimizer(problem.model, learned_rule(UPDATES))
    other.load_state_dict(optimizer.state_dict())
    take_steps(problem, other, 1)
    problem, other = pickle.loads(pickle.dumps((problem, other)))
    other.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    problem.backward()
    gradient(next(iter(problem.model.parameters()))).fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"step 4: the gradient of 0.weight"):
        other.step()


def test_the_error_is_public() -> None:
    assert metaopt.NonFiniteError is NonFiniteError
    assert issubclass(NonFiniteError, RuntimeError)
    assert str(pickle.loads(pickle.dumps(NonFiniteError("step 1")))) == "step 1"


# Where the device is not waited for: the same answers, one step later.


class Slow:
    """A device whose answers arrive when they are let."""

    arrived = False

    def to_host(self, flags: Tensor) -> tuple[Tensor, Callable[[], bool]]:
        return flags.clone(), lambda: self.arrived


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    device = Slow()
    monkeypatch.setattr(finite, "to_host", device.to_host)
    monkeypatch.setattr(finite, "waits_for", lambda device: False)
    return device


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPOILED)
def test_a_masked_step_changes_nothing_and_is_reported_later(
    kind: str, name: str, slow: Slow
) -> None:
    problem, optimizer = spoiled(kind, name)
    before = snapshot(problem, optimizer)
    optimizer.step()
    assert equal(snapshot(problem, optimizer), before)
    if "gradient" in name:
        take_steps(problem, optimizer, 1)
        assert not equal(snapshot(problem, optimizer), before)
        plain = started(kind)
        take_steps(*plain, 1)
        assert equal(snapshot(problem, optimizer), snapshot(*plain))
    slow.arrived = True
    with pytest.raises(NonFiniteError, match=f"^step 3: {SPOILED[name][1]}; "):
        optimizer.step()
    if "gradient" in name:
        optimizer.step()


def test_masking_holds_no_second_copy_of_the_state() -> None:
    old, states = [torch.zeros(2)], {"update": {"h": torch.zeros(3)}}
    step = Advance([torch.ones(2)], states, {"update": {"h": torch.ones(3)}})
    new = [weakref.ref(step.weights[0]), weakref.ref(step.after["update"]["h"])]
    masked = step.where(torch.tensor(False), old)
    assert [tensor() for tensor in new] == [None, None]
    assert equal([*masked.weights, masked.after["update"]["h"]], [*old, states["update"]["h"]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda_no_step_waits(kind: str) -> None:
    problem = models.perceptron().to(torch.float32, "cuda")
    optimizer = LearnedOptimizer(problem.model, learned_rule(kind), lr=0.01)
    take_steps(problem, optimizer, 2)
    problem.backward()
    gradient([*problem.model.parameters()][3]).view(-1)[0].fill_(math.nan)
    before = snapshot(problem, optimizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert equal(snapshot(problem, optimizer), before)
    with pytest.raises(NonFiniteError, match=r"step 3: the gradient of 2.bias"):
        take_steps(problem, optimizer, 1)
