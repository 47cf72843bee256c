"""Hand-made optimizers against torch's, and how rules compose."""

from collections.abc import Callable

import pytest
import torch
from support import DEEP_SIZES, SIZES, UPDATE_AND_TELEPORT, regression, speak_up, tiny_config
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.meta.build import meta_optimizer
from metaopt.meta.unroll import rollout
from metaopt.rules.baselines import hand_made
from metaopt.rules.composed import MetaOptimizer, Optimizer
from metaopt.rules.lbfgs import LBFGS
from metaopt.tasks.base import Observation
from metaopt.tasks.regression import TaskBatch

LOW, HIGH = 1e-7, 5e-3
COORDINATE = ("update", "group", "step")


# Hand-made rules, and how rules compose.


def _steps(optimizer: Optimizer, tasks: TaskBatch, steps: int) -> list[Weights]:
    weights = tasks.initial
    state = optimizer.initial_state(tasks, tasks.observe(weights))
    visited = []
    for _ in range(steps):
        taken = optimizer.step(weights, tasks.observe(weights), state, tasks)
        weights, state = taken.weights, taken.state
        visited.append(weights)
    return visited


TORCH: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "GD": lambda p: torch.optim.SGD(p, lr=0.01),
    "Momentum": lambda p: torch.optim.SGD(p, lr=0.003, momentum=0.8),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.7, 0.95)),
}
HAND_MADE = {
    "GD": {"lr": 0.01},
    "Momentum": {"lr": 0.003, "momentum": 0.8},
    "Adam": {"lr": 0.05, "beta1": 0.7, "beta2": 0.95},
}


def test_the_cosine_is_torchs_and_ends_at_its_horizon() -> None:
    tasks = regression(DEEP_SIZES, samples=4, seed=0)
    values = {"lr": 0.05, "beta1": 0.7, "decay": 0.3}
    parameters = [W.clone().requires_grad_() for W in tasks.initial]
    theirs = torch.optim.AdamW(parameters, lr=0.05, betas=(0.7, 0.999), weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=8)
    visited = _steps(hand_made("AdamW+cosine", values, 8), tasks, 10)
    for weights in visited[:8]:
        theirs.zero_grad()
        tasks.loss(parameters).sum().backward()
        theirs.step()
        schedule.step()
        for mine, other in zip(weights, parameters, strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-9, atol=1e-11)
    assert all(torch.equal(a, b) for a, b in zip(visited[7], visited[9], strict=True))


@pytest.mark.parametrize("name", list(HAND_MADE))
def test_hand_made_rules_are_torchs(name: str) -> None:
    tasks = regression(DEEP_SIZES, samples=4, seed=0)
    optimizer = hand_made(name, HAND_MADE[name], 20)
    parameters = [W.clone().requires_grad_() for W in tasks.initial]
    theirs = TORCH[name](parameters)
    for weights in _steps(optimizer, tasks, 20):
        theirs.zero_grad()
        tasks.loss(parameters).sum().backward()
        theirs.step()
        for mine, other in zip(weights, parameters, strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-11, atol=1e-12)
    assert (tasks.loss(parameters) < 0.5 * tasks.loss(tasks.initial)).all()
    assert optimizer.gradients_per_step == 1


def test_update_first_teleport_after_it() -> None:
    config = tiny_config(UPDATE_AND_TELEPORT, {"max_norm": 0.5}, dtype="float64")
    optimizer = meta_optimizer(config)
    for rule in optimizer.rules.values():
        speak_up(rule)
    assert optimizer.engine is not None
    tasks = regression([4, 3, 2], samples=3, seed=0)
    observation = tasks.observe(tasks.initial)
    state = optimizer.initial_state(tasks, observation)
    proposal, _ = optimizer.propose(observation, state)
    assert proposal.updates is not None
    assert proposal.generators is not None
    taken = optimizer.step(tasks.initial, observation, state, tasks)
    updated = tuple(W + f for W, f in zip(tasks.initial, proposal.updates, strict=True))
    wanted, _ = optimizer.engine.teleport(updated, proposal.generators, tasks)
    for mine, other, before in zip(taken.weights, wanted, updated, strict=True):
        assert torch.equal(mine, other)
        assert not torch.allclose(mine, before, rtol=0, atol=1e-6)
    torch.testing.assert_close(tasks.loss(taken.weights), tasks.loss(updated))


@pytest.mark.parametrize("update", ["gd", "momentum", "adam"])
def test_hand_made_updates_stand_beside_learned_teleports(update: str) -> None:
    rules = {"update": {"kind": update, "lr": 1e-3}, "teleport": UPDATE_AND_TELEPORT["teleport"]}
    optimizer = meta_optimizer(tiny_config(rules, {}, dtype="float64"))
    alone = MetaOptimizer({"update": optimizer.rules["update"]}, None)
    tasks = regression([4, 3, 2], samples=3, seed=0)
    with torch.no_grad():
        taken, plain = _steps(optimizer, tasks, 1)[0], _steps(alone, tasks, 1)[0]
    torch.testing.assert_close(tasks.loss(taken), tasks.loss(plain))
    assert not torch.allclose(taken[0], plain[0], rtol=0, atol=1e-6)


# L-BFGS.


class _EnoughError(Exception):
    pass


def _one_go(task: TaskBatch, history: int, evaluations: int) -> list[float]:
    """Losses of the first points that torch evaluates when it runs without a break."""
    parameters = [W.clone().requires_grad_() for W in task.initial]
    torchs = torch.optim.LBFGS(
        parameters,
        max_iter=10**6,
        max_eval=10**9,
        history_size=history,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    losses: list[float] = []

    def closure() -> Tensor:
        if len(losses) == evaluations:
            raise _EnoughError
        torchs.zero_grad()
        loss = task.loss(parameters).sum()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    with pytest.raises(_EnoughError):
        torchs.step(closure)
    return losses


@pytest.mark.parametrize("history", [1, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_lbfgs_is_torchs_counted_by_gradients(seed: int, history: int) -> None:
    steps = 40
    tasks = regression(SIZES, samples=4, seed=seed)
    losses, _ = rollout(tasks, LBFGS(history), steps)
    for b in range(tasks.size):
        evaluated = _one_go(tasks.select(slice(b, b + 1)), history, steps + 1)
        wanted = torch.tensor(evaluated, dtype=torch.float64).cummin(0).values
        torch.testing.assert_close(losses[:, b], wanted, rtol=1e-9, atol=0)
        assert float(losses[-1, b]) < 0.1 * float(losses[0, b])


def test_lbfgs_evaluates_no_point_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = regression(SIZES, samples=4, seed=0, batch=1)
    solver = LBFGS(20)
    observation = tasks.observe(tasks.initial)
    points: list[tuple[float, ...]] = []
    observe = TaskBatch.observe

    def counting(self: TaskBatch, weights: Weights) -> Observation:
        points.append(tuple(torch.cat([W.flatten() for W in weights]).tolist()))
        return observe(self, weights)

    monkeypatch.setattr(TaskBatch, "observe", counting)
    state = solver.initial_state(tasks, observation)
    weights = tasks.initial
    for _ in range(30):
        weights = solver.step(weights, observation, state, tasks).weights
    assert len(points) >= 31
    assert len(set(points)) == len(points)
    assert solver.gradients_per_step == 1


def test_lbfgs_rests_at_a_minimum() -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    solved = TaskBatch(tasks.X, tasks.outputs(tasks.initial), tasks.initial, tasks.s)
    for weights in _steps(LBFGS(5), solved, 3):
        for mine, start in zip(weights, tasks.initial, strict=True):
            assert torch.equal(mine, start)
