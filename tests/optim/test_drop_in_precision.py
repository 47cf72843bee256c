"""LearnedOptimizer in half precision, under autocast, with GradScaler, compiled, on CUDA."""

from __future__ import annotations

import copy
from collections.abc import Callable

import models
import pytest
import torch
from cases import learned_rule
from models import UPDATES, Problem, equal, every_model, hand_made, stepped, take_steps
from torch import nn

import metaopt
from metaopt.rules.hand_made import GradientDescent

pytestmark = pytest.mark.filterwarnings("error:updates only:UserWarning")


def test_half_precision_is_single_precision_rounded() -> None:
    """Steps of 1e-4 add up, though bfloat16 has nothing between 1 - 2^-8 and 1."""
    single = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(5))]
    half = [nn.Parameter(p.detach().bfloat16()) for p in single]
    for parameters in (single, half):
        optimizer = metaopt.LearnedOptimizer(parameters, hand_made(GradientDescent(1e-4)))
        for _ in range(100):
            for p in parameters:
                p.grad = torch.ones_like(p)
            optimizer.step()
    for one, other in zip(single, half, strict=True):
        assert torch.equal(one.bfloat16(), other)
        assert float(other.detach().float().max()) < 0.995
    # A change from outside counts.
    with torch.no_grad():
        half[1].fill_(2.0)
    optimizer.step()
    assert torch.equal(half[1], torch.full((5,), 2.0).bfloat16())
    assert torch.equal(optimizer.state[half[1]]["unrounded"], torch.full((5,), 2.0) - 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_model
def test_half_precision_trains(make: Callable[[], Problem], dtype: torch.dtype) -> None:
    problem = make().to(dtype)
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES), lr=1e-3)
    first = problem.backward()
    take_steps(problem, optimizer, 5)
    assert problem.loss() < first
    assert {W.dtype for W in problem.weights()} == {dtype}


@pytest.mark.parametrize(
    ("make", "kind"), [(models.perceptron, UPDATES), (models.chain, "coordinate_directions")]
)
def test_autocast_does_not_reach_the_rule(make: Callable[[], Problem], kind: str) -> None:
    results = []
    for inside in (True, False):
        problem = make()
        optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(kind), full_batch=True)
        problem.backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            optimizer.step()
        results.append(problem.weights())
    assert equal(*results)


def test_teleports_go_on_under_autocast() -> None:
    problem = models.chain()
    rule = learned_rule("coordinate_lstm")
    optimizer = metaopt.LearnedOptimizer(problem.model, rule, lr=0.1, full_batch=True)
    for _ in range(2):
        problem.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = problem.loss()
        loss.backward()
        optimizer.step()
    assert optimizer.state_dict()["teleports_off"] is None
    assert all(bool(W.isfinite().all()) for W in problem.weights())


def test_grad_scaler_skips_steps_of_infinite_gradients() -> None:
    problem = models.perceptron()
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plain = models.perceptron()
    take_steps(plain, metaopt.LearnedOptimizer(plain.model, learned_rule(UPDATES)), 1)
    for poison in (True, False):
        before, states = problem.weights(), copy.deepcopy([*optimizer.state.values()])
        problem.model.zero_grad()
        scaler.scale(problem.loss()).backward()
        if poison:
            next(problem.model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        assert equal(problem.weights(), before) == poison
        for one, state in zip(optimizer.state.values(), states, strict=True):
            assert all(torch.equal(one[key], state[key]) for key in state) == poison
    assert scaler.get_scale() == 4.0
    for a, b in zip(problem.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "kind"), [(models.perceptron, UPDATES), (models.chain, "coordinate_directions")]
)
def test_compiled_models_take_the_same_step(make: Callable[[], Problem], kind: str) -> None:
    results = []
    for compiled in (False, True):
        problem = make().to(torch.float64)
        if compiled:
            problem.model = torch.compile(problem.model, backend="eager")  # type: ignore[assignment]
        optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(kind), full_batch=True)
        take_steps(problem, optimizer, 2)
        assert optimizer.state_dict()["teleports_off"] is None
        results.append(problem.weights())
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_model
def test_steps_on_cuda_are_those_on_the_cpu(make: Callable[[], Problem]) -> None:
    here = stepped(make)
    problem = make().to(torch.float64, "cuda")
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
    scaler = torch.amp.GradScaler("cuda", init_scale=1.0)
    problem.model.zero_grad()
    scaler.scale(problem.loss()).backward()
    for p, own in zip(problem.model.parameters(), here.model.parameters(), strict=True):
        # The rule hears the logarithm of gradients: of one that is 0, of rounding alone.
        assert p.grad is not None
        assert own.grad is not None
        torch.testing.assert_close(p.grad.cpu(), own.grad, rtol=1e-5, atol=1e-6)
        p.grad.copy_(own.grad)
    scaler.step(optimizer)
    for a, b in zip(here.weights(), problem.weights(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-6, atol=1e-9)
