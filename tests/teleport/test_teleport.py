"""The teleport engine: drift, guards, networks of any depth, derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import (
    FEW,
    MAX_NORM,
    every_continuous_action,
    gradcheck,
    regression,
    relative_error,
    seeds,
    signed,
)
from torch import Tensor

from metaopt.base.network import Weights, forward
from metaopt.base.streams import Stream
from metaopt.symmetry.actions import Action, InexactActionError, Linear, Scaling, ThroughData
from metaopt.symmetry.limits import BoundedNorm
from metaopt.symmetry.maps import Exponential
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.regression import RegressionFamily, TaskBatch
from metaopt.teleport.engine import TeleportEngine
from metaopt.teleport.guard import Guard, Refuse, Shrink, Unguarded, drift

# Drift and guards.


def test_drift_formula() -> None:
    before = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    after = before + torch.tensor([[[0.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # 2 / (5 + 3); outputs and targets that vanish do not drift.
    assert drift(before, after, torch.tensor([3.0, 0.0])).tolist() == [0.25, 0.0]


def _moved_by_generators(weights: Weights, generators: tuple[Tensor, ...]) -> Weights:
    return tuple(W + T for W, T in zip(weights, generators, strict=True))


def _drift_is_distance(weights: Weights) -> Callable[[Weights], Tensor]:
    return lambda moved: torch.linalg.matrix_norm(moved[0] - weights[0])


@pytest.mark.parametrize("guard", [Refuse(0.5), Shrink(0.5)], ids=["refuse", "shrink"])
def test_guards_decide_for_each_trajectory(guard: Guard) -> None:
    weights = (signed(4, 3, 3, seed=0),)
    sizes = torch.tensor([0.1, 0.4, 2.0, math.nan], dtype=torch.float64)
    direction = torch.eye(3, dtype=torch.float64).expand(4, -1, -1) / math.sqrt(3)
    T = direction * sizes[:, None, None]
    guarded = guard(weights, (T,), _moved_by_generators, _drift_is_distance(weights))
    shrinks = isinstance(guard, Shrink)
    assert guarded.refused.tolist() == [False, False, not shrinks, True]
    wanted = [0.1, 0.4, 0.25 if shrinks else 0.0, 0.0]
    torch.testing.assert_close(guarded.drift, torch.tensor(wanted, dtype=torch.float64))
    for b, distance in enumerate(wanted):
        step = guarded.weights[0][b] - weights[0][b]
        torch.testing.assert_close(step, direction[b] * distance)
        assert guarded.refused[b] == torch.equal(guarded.weights[0][b], weights[0][b])


def test_unguarded_refuses_nothing_and_measures() -> None:
    weights = (signed(2, 3, 3, seed=0),)
    T = 100 * signed(2, 3, 3, seed=1)
    guarded = Unguarded()(weights, (T,), _moved_by_generators, _drift_is_distance(weights))
    assert not guarded.refused.any()
    torch.testing.assert_close(guarded.drift, torch.linalg.matrix_norm(T))
    assert torch.equal(guarded.weights[0], weights[0] + T)


TOLERANCE = 1e-3


def _engine(
    action: Action, guard: Guard | None = None, require_exact: bool = False
) -> TeleportEngine:
    """With the exponential map and generators of norm at most 1."""
    return TeleportEngine(
        action,
        Exponential(MAX_NORM),
        BoundedNorm(MAX_NORM),
        guard or Unguarded(),
        require_exact,
    )


@pytest.mark.parametrize("inexact", [ThroughData(), Linear()], ids=["ThroughData", "Linear"])
@FEW
@given(seed=seeds)
def test_inexact_teleports_are_refused_and_counted(inexact: Action, seed: int) -> None:
    tasks = regression([3, 4, 2], samples=9, seed=seed, batch=4)
    big = signed(4, 4, 4, seed=seed + 1)
    T = big * torch.tensor([1.0, 1.0, 1e-9, 0.0], dtype=torch.float64)[:, None, None]
    moved, report = _engine(inexact, Refuse(TOLERANCE)).teleport(tasks.initial, (T,), tasks)
    assert report.refused.tolist() == [True, True, False, False]
    assert (report.drift <= TOLERANCE).all()
    for W, old in zip(moved, tasks.initial, strict=True):
        assert torch.equal(W[:2], old[:2])
        assert not torch.equal(W[2], old[2])
    _, free = _engine(inexact).teleport(tasks.initial, (T,), tasks)
    assert (free.drift[:2] > TOLERANCE).all()


@pytest.mark.parametrize("inexact", [ThroughData(), Linear()], ids=["ThroughData", "Linear"])
@FEW
@given(seed=seeds)
def test_inexact_teleports_are_shrunk(inexact: Action, seed: int) -> None:
    tasks = regression([3, 4, 2], samples=9, seed=seed, batch=4)
    engine = _engine(inexact, Shrink(TOLERANCE))
    moved, report = engine.teleport(tasks.initial, (signed(4, 4, 4, seed=seed + 1),), tasks)
    measured = drift(tasks.outputs(tasks.initial), tasks.outputs(moved), tasks.target_norm)
    torch.testing.assert_close(report.drift, measured)
    assert (measured <= TOLERANCE).all()
    for b in range(4):
        kept = all(torch.equal(W[b], old[b]) for W, old in zip(moved, tasks.initial, strict=True))
        assert kept == bool(report.refused[b])
        assert kept == (float(measured[b]) == 0)


def test_shrinking_saves_most_teleports() -> None:
    tasks = regression([3, 4, 2], samples=9, seed=0, batch=64)
    T = signed(64, 4, 4, seed=1)
    _, refused = _engine(ThroughData(), Refuse(TOLERANCE)).teleport(tasks.initial, (T,), tasks)
    _, shrunk = _engine(ThroughData(), Shrink(TOLERANCE)).teleport(tasks.initial, (T,), tasks)
    assert int(refused.refused.sum()) == 64
    assert int(shrunk.refused.sum()) < 32


@pytest.mark.parametrize("guard", [Refuse(TOLERANCE), Shrink(TOLERANCE)], ids=["refuse", "shrink"])
def test_generators_without_number_are_refused(guard: Guard) -> None:
    tasks = regression([4, 3, 2], samples=4, seed=0, batch=3)
    T = signed(3, 3, 3, seed=1)
    T[1, 0, 2] = math.nan
    moved, report = _engine(ThroughData(), guard).teleport(tasks.initial, (T,), tasks)
    assert report.refused.tolist() == [False, True, False]
    for W, old in zip(moved, tasks.initial, strict=True):
        assert W.isfinite().all()
        assert torch.equal(W[1], old[1])


def test_refused_teleport_has_the_derivative_of_the_identity() -> None:
    tasks = regression([3, 4, 2], samples=9, seed=0)
    T = signed(2, 4, 4, seed=1).requires_grad_()
    weights = tuple(W.clone().requires_grad_() for W in tasks.initial)
    moved, report = _engine(ThroughData(), Refuse(1e-9)).teleport(weights, (T,), tasks)
    assert report.refused.all()
    cotangents = [signed(*W.shape, seed=2) for W in moved]
    grads = torch.autograd.grad(moved, (*weights, T), cotangents)
    for found, cotangent in zip(grads, cotangents, strict=False):
        assert torch.equal(found, cotangent)
    assert torch.equal(grads[-1], torch.zeros_like(T))


def test_check_wants_data_of_full_column_rank() -> None:
    tasks = regression([4, 3, 2], samples=4, seed=0)
    deficient = tasks.X.clone()
    deficient[1, :, 3] = deficient[1, :, 0] - deficient[1, :, 2]
    broken = replace(tasks, X=deficient)
    strict = _engine(ThroughData(), require_exact=True)
    strict.check(tasks, tasks.initial)
    with pytest.raises(InexactActionError, match="full column rank 4, found rank 3"):
        strict.check(broken, tasks.initial)
    _engine(ThroughData(), require_exact=False).check(broken, tasks.initial)
    _engine(Scaling(), require_exact=True).check(broken, tasks.initial)


def test_check_reads_every_pair() -> None:
    tasks = regression([5, 3, 4, 2], samples=4, seed=0)
    with pytest.raises(InexactActionError, match="4 samples and 3 inputs"):
        _engine(ThroughData(), require_exact=True).check(tasks, tasks.initial)
    wide = regression([5, 4, 3, 2], samples=4, seed=0)
    _engine(ThroughData(), require_exact=True).check(wide, wide.initial)
    with pytest.raises(InexactActionError, match="slope"):
        _engine(Linear(), require_exact=True).check(wide, wide.initial)


# Networks of any depth.

deep_sizes = st.lists(st.integers(3, 6), min_size=4, max_size=5)


def _generators(sizes: list[int], seed: int, batch: int = 2) -> tuple[Tensor, ...]:
    return tuple(signed(batch, k, k, seed=seed + 50 + i) for i, k in enumerate(sizes[1:-1]))


def _deep(action: Action, sizes: list[int], seed: int) -> TaskBatch:
    # Two samples, so that random hidden activations have full column rank.
    slope = 1.0 if isinstance(action, Linear) else 0.1
    return regression(sizes, samples=2, seed=seed, slope=slope)


@every_continuous_action
@FEW
@given(sizes=deep_sizes, seed=seeds)
def test_engine_keeps_outputs_of_deep_networks(action: Action, sizes: list[int], seed: int) -> None:
    tasks = _deep(action, sizes, seed)
    engine = _engine(action, Refuse(1e-9))
    moved, report = engine.teleport(tasks.initial, _generators(sizes, seed), tasks)
    assert not report.refused.any()
    assert relative_error(tasks.outputs(moved), tasks.outputs(tasks.initial)) < 1e-9
    torch.testing.assert_close(tasks.loss(moved), tasks.loss(tasks.initial))
    for W, old in zip(moved, tasks.initial, strict=True):
        assert (torch.linalg.matrix_norm(W - old) > 1e-3).all()


@every_continuous_action
@FEW
@given(sizes=deep_sizes, seed=seeds)
def test_each_hidden_layer_is_moved_by_its_own_element(
    action: Action, sizes: list[int], seed: int
) -> None:
    tasks = _deep(action, sizes, seed)
    engine = _engine(action)
    generators = tuple(engine.limit(action.algebra(T)) for T in _generators(sizes, seed))
    moved = engine.move(tasks.initial, generators, tasks)
    before = forward(tasks.initial, tasks.X, tasks.s).inputs[1:]
    after = forward(moved, tasks.X, tasks.s).inputs[1:]
    for H, gH, T in zip(before, after, generators, strict=True):
        assert relative_error(gH, torch.linalg.matrix_exp(T) @ H) < 1e-9


def test_report_tells_the_norm_of_all_generators_together() -> None:
    sizes = [4, 3, 5, 2]
    tasks = _deep(Scaling(), sizes, 0)
    generators = _generators(sizes, 0)
    _, report = _engine(Scaling()).teleport(tasks.initial, generators, tasks)
    assert report.outputs_before.equal(tasks.outputs(tasks.initial))
    squares = [torch.diagonal(T, dim1=-2, dim2=-1).square().sum(-1) for T in generators]
    limited = [square / (1 + square / MAX_NORM**2) for square in squares]
    torch.testing.assert_close(report.norm, torch.stack(limited).sum(0).sqrt())


def test_float32_teleports_of_the_default_family_drift_little() -> None:
    tasks = RegressionFamily(TaskConfig()).sample(Stream.TEST, 0, 0, 32, torch.float32)
    T = signed(32, 20, 20, seed=0, dtype=torch.float32)
    _, report = _engine(ThroughData()).teleport(tasks.initial, (T,), tasks)
    assert float(report.drift.max()) < 1e-5


@pytest.mark.parametrize("sizes", [[3, 2, 3, 2], [3, 3, 2, 3, 2]], ids=["3 layers", "4 layers"])
@every_continuous_action
def test_gradcheck_of_the_engine(action: Action, sizes: list[int]) -> None:
    tasks = _deep(action, sizes, seed=3)
    engine = _engine(action)
    layers = len(tasks.initial)

    def moved(*inputs: Tensor) -> tuple[Tensor, ...]:
        generators = tuple(engine.limit(action.algebra(T)) for T in inputs[layers:])
        return engine.move(inputs[:layers], generators, tasks)

    assert gradcheck(moved, [*tasks.initial, *_generators(sizes, 3)])


@pytest.mark.parametrize(
    "guard", [Unguarded(), Refuse(1e-6), Shrink(1e-6)], ids=["none", "refuse", "shrink"]
)
def test_gradcheck_of_a_guarded_teleport(guard: Guard) -> None:
    tasks = _deep(ThroughData(), [3, 2, 2], seed=3)
    engine = _engine(ThroughData(), guard)

    def moved(W1: Tensor, W2: Tensor, T: Tensor) -> tuple[Tensor, ...]:
        return engine.teleport((W1, W2), (T,), tasks)[0]

    assert gradcheck(moved, [*tasks.initial, signed(2, 2, 2, seed=4)])
