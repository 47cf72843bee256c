"""optimizer.eval() puts the averaged weights into the parameters, train() those that train."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from averaging import ScheduleFree
from cases import learned_rule
from models import UPDATES, Problem, equal, hand_made, saved, take_steps
from torch import Tensor, nn

import metaopt
from metaopt.optim.modes import TRAINED

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LR = 0.125


def problem_with(dtype: torch.dtype = torch.float64) -> tuple[Problem, metaopt.LearnedOptimizer]:
    problem = models.convolutional().to(dtype)
    return problem, metaopt.LearnedOptimizer(problem.model, hand_made(ScheduleFree(LR)))


def weights_of(problem: Problem, mode: Callable[[], None]) -> list[Tensor]:
    mode()
    return problem.weights()


def test_the_iterates_of_a_constant_gradient() -> None:
    """z_t = w - t lr G, x_t = w - (t + 1)/2 lr G, y_t = (1 - beta) z_t + beta x_t."""
    parameters = [nn.Parameter(torch.randn(3, 4, dtype=torch.float64)), nn.Parameter(torch.ones(5))]
    start, G = [p.detach().clone() for p in parameters], [torch.randn_like(p) for p in parameters]
    optimizer = metaopt.LearnedOptimizer(parameters, hand_made(ScheduleFree(LR)))
    for t in range(1, 6):
        for p, g in zip(parameters, G, strict=True):
            p.grad = g.clone()
        optimizer.step()
        for mode, far in ((optimizer.eval, (t + 1) / 2), (optimizer.train, None)):
            mode()
            if far is None:
                far = (1 - ScheduleFree.beta) * t + ScheduleFree.beta * (t + 1) / 2
            for p, w, g in zip(parameters, start, G, strict=True):
                torch.testing.assert_close(p.detach(), w - far * LR * g)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_trains_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    (problem, optimizer), (twin, plain) = problem_with(dtype), problem_with(dtype)
    for _ in range(4):
        take_steps(problem, optimizer, 2)
        take_steps(twin, plain, 2)
        before = models.states(optimizer)
        averaged = weights_of(problem, optimizer.eval)
        assert not equal(averaged, twin.weights())
        assert equal(averaged, weights_of(problem, optimizer.eval))
        assert equal(twin.weights(), weights_of(problem, optimizer.train))
        assert equal(twin.weights(), weights_of(problem, optimizer.train))
        after = models.states(optimizer)
        for p, own in before.items():
            assert own.keys() == after[p].keys()
            assert equal([*own.values()], [*after[p].values()])


def test_steps_wait_for_train() -> None:
    problem, optimizer = problem_with()
    take_steps(problem, optimizer, 2)
    optimizer.eval()
    optimizer.zero_grad()
    called: list[int] = []
    before = problem.weights()
    with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\) before the forward pass"):
        optimizer.step(lambda: called.append(1))
    assert not called
    assert equal(before, problem.weights())
    optimizer.train()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss

    assert optimizer.step(closure) is not None


def test_nothing_happens_without_an_average_or_a_step() -> None:
    problem = models.perceptron()
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
    for _ in range(2):
        before = problem.weights()
        optimizer.eval()
        assert equal(before, problem.weights())
        take_steps(problem, optimizer, 1)
        optimizer.train()
    problem, optimizer = problem_with()
    before = problem.weights()
    assert equal(before, weights_of(problem, optimizer.eval))
    assert equal(before, weights_of(problem, optimizer.train))


def test_parameters_without_a_gradient_stay() -> None:
    problem, optimizer = problem_with()
    frozen = next(problem.model.parameters())
    before = frozen.detach().clone()
    for _ in range(3):
        problem.backward()
        frozen.grad = None
        optimizer.step()
    for mode in (optimizer.eval, optimizer.train):
        mode()
        assert torch.equal(frozen, before)


def copied(parts: tuple[Problem, metaopt.LearnedOptimizer]) -> Any:
    return copy.deepcopy(parts)


def pickled(parts: tuple[Problem, metaopt.LearnedOptimizer]) -> Any:
    return pickle.loads(pickle.dumps(parts))


def loaded(parts: tuple[Problem, metaopt.LearnedOptimizer]) -> Any:
    file = saved([part.state_dict() for part in (parts[0].model, parts[1])])
    others = problem_with(next(parts[0].model.parameters()).dtype)
    # Whatever mode it is in itself.
    take_steps(*others, 1)
    others[1].eval()
    others[0].model.load_state_dict(file[0])
    others[1].load_state_dict(file[1])
    return others


@pytest.mark.parametrize("again", [copied, pickled, loaded])
@pytest.mark.parametrize("dtype", DTYPES[1:3])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_mode_goes_with_the_state(again: Any, dtype: torch.dtype, mode: str) -> None:
    parts = problem_with(dtype)
    take_steps(*parts, 3)
    getattr(parts[1], mode)()
    others = again(parts)
    assert equal(parts[0].weights(), others[0].weights())
    if mode == "eval":
        with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\)"):
            others[1].step()
    for problem, optimizer in (parts, others):
        optimizer.train()
        take_steps(problem, optimizer, 2)
    assert equal(parts[0].weights(), others[0].weights())
    assert equal(*(weights_of(problem, optimizer.eval) for problem, optimizer in (parts, others)))


def test_a_state_without_the_mode_is_of_training() -> None:
    problem, optimizer = problem_with()
    take_steps(problem, optimizer, 2)
    file = saved(optimizer.state_dict())
    for group in file["param_groups"]:
        del group["averaged"]
    optimizer.eval()
    optimizer.load_state_dict(file)
    problem.backward()
    optimizer.step()
    file["param_groups"][0]["averaged"] = "yes"
    with pytest.raises(ValueError, match=r"\['averaged'\]: found 'yes', expected true or false"):
        optimizer.load_state_dict(file)


@pytest.mark.parametrize("dtype", DTYPES[1:3])
def test_weights_changed_in_eval_mode_are_a_new_average(dtype: torch.dtype) -> None:
    problem, optimizer = problem_with(dtype)
    take_steps(problem, optimizer, 3)
    before = problem.weights()
    optimizer.eval()
    changed = [*problem.model.parameters()][-2]
    with torch.no_grad():
        changed[0] += 1.0
    now = problem.weights()
    optimizer.train()
    trained = problem.weights()
    assert all(torch.equal(a, b) for a, b in zip(before[:-2], trained[:-2], strict=True))
    assert torch.equal(before[-2][1:], trained[-2][1:])
    # Moved by as much as the average was, and it is the average again.
    atol = 1e-12 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(trained[-2][0], before[-2][0] + 1.0, rtol=0.0, atol=atol)
    torch.testing.assert_close(weights_of(problem, optimizer.eval), now, rtol=0.0, atol=atol)


def test_parameters_that_come_in_eval_mode() -> None:
    problem, optimizer = problem_with()
    take_steps(problem, optimizer, 2)
    before = problem.weights()
    optimizer.eval()
    late = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [late]})
    with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\)"):
        optimizer.step()
    optimizer.train()
    assert equal(before, problem.weights())
    assert torch.equal(late, torch.ones(3, dtype=torch.float64))
    assert not any(TRAINED in state for state in optimizer.state.values())
    late.grad = torch.ones_like(late)
    take_steps(problem, optimizer, 1)
    assert torch.equal(late, 1 - LR * torch.ones(3, dtype=torch.float64))


def test_modes_within_inference_mode_and_autocast() -> None:
    (problem, optimizer), (twin, plain) = problem_with(torch.float32), problem_with(torch.float32)
    for each, own in ((problem, optimizer), (twin, plain)):
        take_steps(each, own, 2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        optimizer.eval()
    optimizer.train()
    for each, own in ((problem, optimizer), (twin, plain)):
        take_steps(each, own, 2)
    assert equal(problem.weights(), twin.weights())


def test_a_state_that_was_cleared_in_eval_mode_starts_afresh() -> None:
    problem, optimizer = problem_with()
    take_steps(problem, optimizer, 2)
    averaged = weights_of(problem, optimizer.eval)
    optimizer.state.clear()
    assert equal(averaged, weights_of(problem, optimizer.train))
    take_steps(problem, optimizer, 1)
