"""LearnedOptimizer on a CUDA device: steps, states and teleports are those on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import models
import pytest
import torch
from cases import RULES, learned_rule
from models import UPDATES, Problem, equal, every_model, saved, take_steps

import metaopt
from metaopt import LearnedOptimizer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:updates only:UserWarning"),
]

BOTH = ["cpu", "cuda"]
every_problem = pytest.mark.parametrize(
    ("make", "kind"),
    [
        (models.chain, "coordinate_lstm"),
        (models.chain, "coordinate_lstm_update"),
        (models.perceptron, "layer_units"),
        (models.perceptron, UPDATES),
    ],
)


def started(
    make: Callable[[], Problem], kind: str, device: str = "cuda", lr: float = 0.01
) -> tuple[Problem, LearnedOptimizer]:
    problem = make().to(torch.float64, device)
    return problem, LearnedOptimizer(problem.model, learned_rule(kind), lr, full_batch=True)


def assert_close(some: Problem, other: Problem) -> None:
    for a, b in zip(some.weights(), other.weights(), strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-5, atol=1e-8)


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", RULES)
def test_steps_on_a_chain_are_those_on_the_cpu(kind: str) -> None:
    found = []
    for device in BOTH:
        problem, optimizer = started(models.chain, kind, device, lr=1.0)
        for _ in range(3):
            optimizer.step(problem.backward)
        assert optimizer.teleports_off is None
        found.append(problem)
    assert_close(*found)


@every_problem
def test_no_forward_or_backward_pass_waits(make: Callable[[], Problem], kind: str) -> None:
    """Nor does the step, but that of a rule that reads the data: it compares them first."""
    problem, optimizer = started(make, kind)
    take_steps(problem, optimizer, 2)
    with no_waiting():
        problem.backward()
    if make is models.perceptron:
        with no_waiting():
            optimizer.step()


@every_problem
def test_passes_may_be_captured_as_a_graph(make: Callable[[], Problem], kind: str) -> None:
    problem, optimizer = started(make, kind)
    plain = started(make, kind)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        problem.backward()
    torch.cuda.current_stream().wait_stream(side)
    problem.model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        problem.loss().backward()
    for _ in range(3):
        graph.replay()
        optimizer.step()
        take_steps(*plain, 1)
    assert optimizer.teleports_off is None
    assert_close(problem, plain[0])
    with (
        pytest.raises(RuntimeError, match="takes no steps within a CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()


@every_problem
def test_a_state_goes_on_on_the_other_device(make: Callable[[], Problem], kind: str) -> None:
    problem, optimizer = started(make, kind)
    take_steps(problem, optimizer, 2)
    again = optimizer.state_dict()
    for device in ("cpu", "cuda"):
        other, onward = started(make, kind, device)
        other.model.load_state_dict(problem.model.state_dict())
        onward.load_state_dict(saved(again))
        again = onward.state_dict()
        assert {t.device.type for own in onward.state.values() for t in own.values()} == {device}
    assert equal(other.weights(), problem.weights())
    for a, b in zip(optimizer.state.values(), onward.state.values(), strict=True):
        assert equal([*a.values()], [*b.values()])


@every_model
def test_a_teleport_is_that_on_the_cpu(make: Callable[[], Problem]) -> None:
    found, said, before = [], [], torch.cuda.get_rng_state()
    for device in BOTH:
        problem, optimizer = started(make, "layer_units", device)
        symmetries = metaopt.symmetries(problem.model, example=problem.x, permutations=True)
        said.append(str(symmetries))
        outputs = problem.model.eval()(problem.x).detach()
        metaopt.teleport(problem.model, symmetries=symmetries, optimizer=optimizer)
        torch.testing.assert_close(problem.model(problem.x).detach(), outputs)
        found.append(problem)
    assert said[0] == said[1]
    assert_close(*found)
    assert torch.equal(torch.cuda.get_rng_state(), before)
