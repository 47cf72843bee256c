"""The classical teleport and the references: identities, exact solutions, finite differences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import regression, signed
from torch import Tensor

from metaopt.base.config import ConfigError, check, load
from metaopt.base.network import Weights
from metaopt.base.process import World
from metaopt.evaluation.config import EvalConfig
from metaopt.evaluation.contenders import baseline_contenders
from metaopt.meta.unroll import rollout
from metaopt.rules.baselines import BASELINES, RULES, hand_made
from metaopt.rules.composed import MetaOptimizer, Optimizer, Step
from metaopt.rules.gradient_teleport import GradientTeleport
from metaopt.rules.hand_made import GradientDescent
from metaopt.rules.references import KFAC, SolveLast, WhitenLast, whitening
from metaopt.symmetry.actions import InexactActionError, ThroughData
from metaopt.symmetry.limits import CappedNorm, FixedNorm
from metaopt.symmetry.maps import Exponential
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.engine import TeleportEngine, TeleportReport
from metaopt.teleport.guard import Refuse
from metaopt.teleport.search_on_tasks import gradient_norms

CPU = torch.device("cpu")
SHAPES = [[6, 4, 3], [7, 6, 4, 3]]
"""One and two hidden layers; with 5 samples every pair's input has full column rank."""


def _first(optimizer: Optimizer, tasks: TaskBatch, weights: Weights | None = None) -> Step:
    weights = tasks.initial if weights is None else weights
    observation = tasks.observe(weights)
    state = optimizer.initial_state(tasks, observation)
    return optimizer.step(weights, observation, state, tasks)


def _hidden(tasks: TaskBatch, weights: Weights) -> Tensor:
    return tasks.observe(weights).inputs[-1]


def _squares(tasks: TaskBatch, weights: Weights) -> Tensor:
    """||grad L||^2, [B]."""
    grads = tasks.observe(weights).grads
    return torch.stack([G.square().sum(dim=(-2, -1)) for G in grads]).sum(0)


# Solve W2.


def test_solving_the_last_layer_solves_where_the_activations_are_invertible() -> None:
    tasks = regression([6, 5, 3], samples=5, seed=0)
    losses, teleports = rollout(tasks, SolveLast(), 3)
    assert (losses[1] < 1e-20 * losses[0]).all()
    assert torch.equal(losses[1], losses[3])
    assert teleports is None


@pytest.mark.parametrize("samples", [3, 9])
def test_solving_the_last_layer_is_least_squares(samples: int) -> None:
    tasks = regression([9, 5, 3], samples=samples, seed=0)
    *others, W = _first(SolveLast(), tasks).weights
    assert all(torch.equal(*pair) for pair in zip(others, tasks.initial[:-1], strict=True))
    H = _hidden(tasks, tasks.initial)
    wanted = torch.linalg.lstsq(H.mT, tasks.Y.mT, driver="gelsd").solution.mT
    torch.testing.assert_close(W, wanted, rtol=1e-9, atol=1e-10)


# Whiten W2.


@pytest.mark.parametrize("sizes", SHAPES)
def test_whitening_makes_a_unit_step_solve(sizes: list[int]) -> None:
    tasks = regression(sizes, samples=5, seed=0)
    optimizer = WhitenLast()
    taken = _first(optimizer, tasks)
    H = _hidden(tasks, taken.weights)
    identity = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    torch.testing.assert_close(H @ H.mT, identity, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        tasks.loss(taken.weights), tasks.loss(tasks.initial), rtol=1e-9, atol=0
    )
    assert isinstance(taken.report, TeleportReport)
    assert float(taken.report.drift.max()) < 1e-10
    # What is reported is the generator of the element that acted.
    g = torch.matrix_exp(taken.report.generators[-1])
    torch.testing.assert_close(g @ _hidden(tasks, tasks.initial), H, rtol=1e-8, atol=1e-9)

    observation = tasks.observe(taken.weights)
    stepped = optimizer.step(taken.weights, observation, taken.state, tasks).weights
    solved = _first(SolveLast(), tasks).weights
    torch.testing.assert_close(tasks.loss(stepped), tasks.loss(solved), rtol=1e-9, atol=0)


def test_whitening_of_too_few_samples_is_a_projection() -> None:
    H = signed(2, 6, 4, seed=0)
    element, T = whitening(H)
    white = element.g @ H
    projection = white @ white.mT
    # g is 1e7 large where H is 0.
    torch.testing.assert_close(projection @ projection, projection, rtol=0, atol=1e-7)
    ranks = torch.diagonal(projection, dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(ranks, torch.full_like(ranks, 4.0), rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.matrix_exp(-T), element.g_inv, rtol=1e-8, atol=1e-8)


def test_whitening_needs_the_action_to_be_exact() -> None:
    tasks = regression([4, 3, 2], samples=5, seed=0)
    with pytest.raises(InexactActionError, match="5 samples and 4 inputs"):
        WhitenLast().initial_state(tasks, tasks.observe(tasks.initial))


# K-FAC.


def _jacobian(tasks: TaskBatch, layer: int) -> Tensor:
    """d f / d W_l, [m N, out in], of the first task alone."""
    task = tasks.select(slice(0, 1))

    def outputs(W: Tensor) -> Tensor:
        weights = list(task.initial)
        weights[layer] = W
        return task.outputs(tuple(weights)).flatten()

    J = torch.autograd.functional.jacobian(outputs, task.initial[layer])
    assert isinstance(J, Tensor)
    return J.reshape(J.shape[0], -1)


def _gauss_newton(tasks: TaskBatch, layer: int) -> Tensor:
    """The Gauss-Newton step of one layer of the first task."""
    task = tasks.select(slice(0, 1))
    J = _jacobian(tasks, layer)
    step = torch.linalg.solve(J.T @ J, task.observe(task.initial).grads[layer].flatten())
    return -step.reshape(task.initial[layer].shape[1:])


@pytest.mark.parametrize(
    ("slope", "layer"), [(1.0, 0), (1.0, 1), (0.1, 1)], ids=["linear W1", "linear W2", "W2"]
)
def test_kfac_is_gauss_newton_where_the_factors_are_exact(slope: float, layer: int) -> None:
    tasks = regression([3, 2, 4], samples=5, seed=0, slope=slope)
    taken = _first(KFAC(lr=1.0, damping=0.0), tasks)
    found = (taken.weights[layer] - tasks.initial[layer])[0]
    torch.testing.assert_close(found, _gauss_newton(tasks, layer), rtol=1e-8, atol=1e-9)


def test_kfac_factors_are_means_over_samples() -> None:
    tasks = regression([4, 3, 5, 2], samples=6, seed=0)
    _, S, _ = KFAC(1.0, 0.0).output_factors(tasks.observe(tasks.initial), tasks)
    # Of the output with respect to the last pre-activations, sample by sample.
    slopes = tasks.s.derivative(_hidden(tasks, tasks.initial))
    W = tasks.initial[-1]
    J = [W * slopes[:, None, :, i] for i in range(6)]
    wanted = torch.stack([of_sample.mT @ of_sample for of_sample in J]).mean(0)
    torch.testing.assert_close(S, wanted)


def test_kfac_damping_is_shared_out() -> None:
    tasks = regression([4, 3, 2], samples=5, seed=0)
    damping, lr = 0.01, 0.7
    observation = tasks.observe(tasks.initial)
    optimizer = KFAC(lr, damping)
    taken = _first(optimizer, tasks)
    S = optimizer.output_factors(observation, tasks)[0][0]
    R = (observation.inputs[0] @ observation.inputs[0].mT)[0]
    mean_R, mean_S = R.trace() / 4, S.trace() / 3
    total, pi = damping * mean_R * mean_S, (mean_R / mean_S).sqrt()
    damped_R = R + pi * total.sqrt() * torch.eye(4, dtype=torch.float64)
    damped_S = S + total.sqrt() / pi * torch.eye(3, dtype=torch.float64)
    whole = torch.kron(damped_S, damped_R)
    wanted = -lr * torch.linalg.solve(whole, observation.grads[0][0].flatten()).reshape(3, 4)
    torch.testing.assert_close((taken.weights[0] - tasks.initial[0])[0], wanted)


def test_kfac_descends_at_any_depth() -> None:
    tasks = regression([4, 3, 5, 2], samples=6, seed=0)
    losses, _ = rollout(tasks, KFAC(lr=0.2, damping=0.01), 30)
    assert (losses[-1] < 0.2 * losses[0]).all()


# GD+teleport.


def _engine(norm: float) -> TeleportEngine:
    return TeleportEngine(
        ThroughData(), Exponential(norm), CappedNorm(norm), Refuse(1e-4), require_exact=True
    )


def _teleported(lr: float, norm: float, ascents: int, every: int) -> GradientTeleport:
    updated = MetaOptimizer({"update": GradientDescent(lr)}, None)
    return GradientTeleport(updated, norm, ascents, every, _engine(ascents * norm))


@pytest.mark.parametrize("sizes", SHAPES)
def test_ascent_raises_the_gradient_norm_to_first_order(sizes: list[int]) -> None:
    tasks = regression(sizes, samples=5, seed=0)
    norm = 1e-4
    engine = _engine(norm)
    start = tuple(W.new_zeros(len(W), W.shape[1], W.shape[1]) for W in tasks.initial[:-1])
    value, direction = gradient_norms(tasks, tasks.initial, engine)(start)
    torch.testing.assert_close(value, _squares(tasks, tasks.initial))
    unit = FixedNorm(norm)
    rise = sum((T * unit(T)).sum(dim=(-2, -1)) for T in direction)
    ahead = engine.move(tasks.initial, tuple(unit(T) for T in direction), tasks)
    behind = engine.move(tasks.initial, tuple(-unit(T) for T in direction), tasks)
    measured = (_squares(tasks, ahead) - _squares(tasks, behind)) / 2
    torch.testing.assert_close(measured, rise, rtol=1e-5, atol=0)
    assert (measured > 0).all()
    torch.testing.assert_close(tasks.loss(ahead), tasks.loss(tasks.initial), rtol=1e-9, atol=0)


def test_classical_teleport_follows_the_update_and_keeps_its_loss() -> None:
    tasks = regression([6, 4, 3], samples=5, seed=0)
    lr, norm = 1e-3, 0.01
    optimizer = _teleported(lr, norm, ascents=2, every=3)
    taken = _first(optimizer, tasks)
    grads = tasks.observe(tasks.initial).grads
    updated = tuple(W - lr * G for W, G in zip(tasks.initial, grads, strict=True))
    torch.testing.assert_close(tasks.loss(taken.weights), tasks.loss(updated), rtol=1e-9, atol=0)
    assert (_squares(tasks, taken.weights) > 1.01 * _squares(tasks, updated)).all()
    assert optimizer.gradients_per_step == 1 + 3 * 2 / 3

    _, teleports = rollout(tasks, optimizer, 7)
    assert teleports is not None
    moved = teleports.norm > 0
    assert moved.all(1).tolist() == [True, False, False, True, False, False, True]
    assert not moved[[1, 2, 4, 5]].any()
    assert (teleports.norm[0] <= 2 * norm).all()
    assert (teleports.norm[0] > norm).all()
    assert float(teleports.drift.max()) < 1e-10
    assert float(teleports.log_ratio.abs().max()) < 1e-9


VALUES = {"lr": 1e-3, "momentum": 0.5, "beta1": 0.5, "beta2": 0.9, "decay": 1e-3}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_teleports_to_a_larger_gradient_at_the_same_loss(name: str) -> None:
    tasks = regression([7, 6, 4, 3], samples=5, seed=0)
    own = {key: VALUES[key] for key in BASELINES[name].hyperparameters}
    plain = hand_made(name, own, 9)
    more: dict[str, float] = {"norm": 0.01, "ascents": 3, "every": 2}
    teleported = hand_made(f"{name}+teleport", own | more, 9)
    assert teleported.gradients_per_step == 1 + 3 * 3 / 2
    updated, moved = (_first(one, tasks) for one in (plain, teleported))
    before, after = tasks.loss(updated.weights), tasks.loss(moved.weights)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=0)
    larger = _squares(tasks, moved.weights) / _squares(tasks, updated.weights)
    assert (larger > 1.01).all()
    assert BASELINES[f"{name}+teleport"].needs_network
    losses, teleports = rollout(tasks, teleported, 6)
    assert teleports is not None
    assert (teleports.norm > 0).all(1).tolist() == [True, False] * 3
    assert float(teleports.drift.max()) < 1e-10
    assert (losses[-1] < losses[0]).all()


def test_classical_teleport_of_a_trajectory_that_is_lost_is_refused() -> None:
    tasks = regression([6, 4, 3], samples=5, seed=0)
    optimizer = _teleported(1e3, 0.1, ascents=1, every=7)
    _, teleports = rollout(tasks, optimizer, 60)
    assert teleports is not None
    assert teleports.refused[-10:].all()
    assert torch.isfinite(teleports.log_ratio).all()
    assert torch.isfinite(teleports.drift).all()


# As they are chosen.


def test_kinds_and_grids(tmp_path: Path) -> None:
    names = ["GD", "GD+teleport", "Adam+teleport", "K-FAC", "solve W2@2", "whiten W2"]
    grids = {
        "GD": {"lr": [1e-4]},
        "GD+teleport": {"lr": [1e-4], "norm": [0.01], "ascents": [1], "every": [2]},
        "Adam+teleport": {
            "lr": [0.01],
            "beta1": [0.5, 0.9],
            "beta2": [0.9],
            "norm": [0.01],
            "ascents": [2],
            "every": [2],
        },
        "K-FAC": {"lr": [0.1], "damping": [1e-3, 1e-2]},
    }
    task = {"width": 3, "inputs": 4, "outputs": 2, "samples": 3}
    tuning = {"tasks": 2, "grids": grids}
    content = {"task": task, "steps": 3, "baselines": names, "tuning": tuning}
    config = check(EvalConfig, content, "test")
    found = baseline_contenders(config, CPU, tmp_path / "cache.json", World())
    kinds = ["baseline", "baseline", "baseline", "reference", "reference", "reference"]
    assert [(one.name, one.kind) for one in found] == list(zip(names, kinds, strict=True))

    inexact = check(EvalConfig, content | {"task": task | {"samples": 5}}, "test")
    found = baseline_contenders(inexact, CPU, tmp_path / "cache.json", World())
    assert [one.name for one in found] == names[:-1]

    with pytest.raises(ConfigError, match="no entry for K-FAC"):
        check(EvalConfig, content | {"tuning": {"grids": {"GD": {"lr": [1.0]}}}}
              | {"baselines": ["K-FAC"]}, "test")  # fmt: skip


def test_shipped_grids_hold_all_hand_made_optimizers() -> None:
    grids = [load(EvalConfig, name).tuning.grids for name in ("eval.yaml", "eval_digits.yaml")]
    tuned = {base for base, baseline in BASELINES.items() if baseline.hyperparameters}
    assert {base for grid in grids for base in grid} == tuned
