"""What is measured is the whole of it, and nothing else: evaluations, teleports, time, draws."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from cases import learned_rule
from cases import tasks as sample
from torch import Tensor, nn
from torch.nn import functional

import metaopt
from metaopt.base.network import Weights
from metaopt.base.process import World
from metaopt.base.streams import Stream
from metaopt.evaluation.contenders import Contender
from metaopt.evaluation.evaluate import run_contender
from metaopt.meta.unroll import rollout
from metaopt.rules.baselines import hand_made
from metaopt.rules.lbfgs import LBFGS
from metaopt.tasks.base import Tasks
from metaopt.tasks.own_batch import LossFamily, LossTasks
from metaopt.teleport.unit_engine import UnitEngine, UnitReport

EXAMPLES, BATCH = 40, 6


class Fit(metaopt.Family):
    """Least squares on mini-batches, judged on examples kept apart; it notes what it is asked."""

    batch: int | None = BATCH

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        x, y = (torch.from_numpy(generator.normal(size=(EXAMPLES + 9, k))) for k in (3, 2))
        net = {"W": torch.from_numpy(generator.normal(size=(2, 3)))}
        return metaopt.Task(net, (x[:EXAMPLES], y[:EXAMPLES]), (x[EXAMPLES:], y[EXAMPLES:]))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        x, y = data
        return functional.mse_loss(x @ weights["W"].mT, y)


class FitToAll(Fit):
    batch = None


def draw(own: metaopt.Family, count: int = 2) -> LossTasks:
    family = LossFamily(own, "test:Fit")
    return family.sample(Stream.TEST, 0, 0, count, torch.float64)


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """The data that single tasks were observed on, in order."""
    data: list[tuple[Tensor, ...]] = []
    observe = LossTasks.observe

    def noting(self: LossTasks, weights: Weights) -> Any:
        if self.size == 1:
            data.append(self.seen or self.data)
        return observe(self, weights)

    monkeypatch.setattr(LossTasks, "observe", noting)
    return data


def test_lbfgs_sees_one_minibatch_a_gradient(observed: list[tuple[Tensor, ...]]) -> None:
    tasks = draw(Fit(), count=1)
    state = LBFGS(5).initial_state(tasks, tasks.at(0).observe(tasks.initial))
    observed.clear()
    (solver,) = state
    weights = [solver.advance() for _ in range(30)]
    assert {len(x) for (x, y) in observed for x in x} == {BATCH}
    # A search may run ahead of what it hands out, by what it has queued and no more.
    assert len(observed) == 30 + len(solver._queue)
    steps = [next(t for t in range(40) if torch.equal(tasks.at(t).seen[0], x)) for x, _ in observed]
    assert steps == sorted(steps)
    assert len(set(steps)) > 3
    # Each search is on the mini-batch of the step at which it begins.
    begun = [i for i in range(1, 30) if steps[i] != steps[i - 1]]
    assert [steps[i] for i in begun] == [i + 1 for i in begun]
    assert float(tasks.loss(weights[-1])) < float(tasks.loss(tasks.initial))


def test_lbfgs_on_all_data_keeps_its_best(observed: list[tuple[Tensor, ...]]) -> None:
    tasks = draw(FitToAll())
    losses = torch.stack([tasks.seen_loss(W) for W in _weights(LBFGS(5), tasks, 12)])
    assert {x.shape[1] for x, _ in observed} == {EXAMPLES}
    assert bool((losses.diff(dim=0) <= 0).all())
    assert bool((losses[-1] < losses[0]).all())


def _weights(optimizer: Any, tasks: LossTasks, steps: int) -> list[Weights]:
    seen = tasks.at(0).observe(tasks.initial)
    state, found = optimizer.initial_state(tasks, seen), [tasks.initial]
    for _ in range(steps):
        found.append(optimizer.step(found[-1], seen, state, tasks).weights)
    return found


def slip_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One scaling of units is not exact."""
    exact, taken = UnitEngine.teleport, [0]

    def slipping(self: UnitEngine, *arguments: Any) -> tuple[Weights, UnitReport]:
        moved, report = exact(self, *arguments)
        taken[0] += 1
        return (tuple(1.1 * W for W in moved) if taken[0] == step + 1 else moved), report

    monkeypatch.setattr(UnitEngine, "teleport", slipping)


@pytest.mark.parametrize("own", [False, True], ids=["outputs", "losses"])
@pytest.mark.parametrize("at", [0, 3, 9, 11])
def test_a_drift_of_units_is_seen_at_whatever_step(
    at: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = learned_rule("layer_units")
    tasks: Tasks = draw(Scaled()) if own else sample(rule.config.task, count=3)
    slip_at(at, monkeypatch)
    _, trace = rollout(tasks, rule.optimizer, 12)
    assert trace is not None
    slipped = torch.arange(12) == at
    assert float(trace.drift[slipped].min()) > 1e-3
    assert float(trace.drift[~slipped].max()) < 1e-10
    assert float(trace.log_ratio[slipped].abs().min()) > 1e-3
    assert float(trace.log_ratio[~slipped].abs().max()) < 1e-10
    assert float(trace.summary()["drift_max"]) == float(trace.drift.max())


class Scaled(Fit):
    """A network with hidden units."""

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        self.symmetries = metaopt.symmetries(self.net)

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        task = super().sample(generator)
        return metaopt.Task(metaopt.fresh_weights(self.net, generator), task.data, task.test)

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        x, y = data
        return functional.mse_loss(torch.func.functional_call(self.net, weights, (x,)), y)


class Clock:
    """Time passes where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("own", [Fit(), Scaled()], ids=["judged apart", "and teleports"])
def test_seconds_are_those_of_steps_alone(own: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("metaopt.base.stopwatch.time", clock)

    def taking(method: Any, seconds: float) -> Any:
        def taken(*arguments: Any) -> Any:
            clock.now += seconds
            return method(*arguments)

        return taken

    judge = {"judged": 100.0, "loss": 100.0, "seen_loss": 100.0, "observe": 1.0, "at": 2.0}
    for name, seconds in judge.items():
        monkeypatch.setattr(LossTasks, name, taking(getattr(LossTasks, name), seconds))
    if isinstance(own, Scaled):
        optimizer: Any = learned_rule("layer_units").optimizer
    else:
        optimizer = hand_made("Adam", {"lr": 0.1, "beta1": 0.9, "beta2": 0.9}, 4)
    monkeypatch.setattr(type(optimizer), "step", taking(type(optimizer).step, 4.0))
    contender = Contender("it", "baseline", optimizer, {})
    outcome = run_contender(contender, draw(own), 5, World())
    assert outcome.seconds_per_step == pytest.approx(1.0 + 2.0 + 4.0)


class Draws(nn.Module):
    """Its initialisation draws from every global generator of the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.tensor([random.random(), np.random.rand(), 0.0]))
            self.weight[2:].uniform_()


def test_fresh_weights_touch_no_global_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    for reseeds in ("torch.cuda.manual_seed_all", "torch.mps.manual_seed", "torch.manual_seed"):
        monkeypatch.setattr(reseeds, None)
    net = Draws()
    before = _global_generators()
    found, again, other = (metaopt.fresh_weights(net, np.random.default_rng(s)) for s in (4, 4, 5))
    assert _global_generators() == before
    assert torch.equal(found["weight"], again["weight"])
    assert bool((found["weight"] != other["weight"]).all())
    # The module itself is somebody's.
    assert torch.equal(net.weight, torch.zeros(3))


def _global_generators() -> list[str]:
    return [str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())]
