"""The teleport engine: the laws of every group, exactness, maps, limits, guards, derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import (
    FEW,
    batches,
    full_rank,
    regression,
    relative_error,
    seeds,
    signed,
    slopes,
    widths,
)
from torch import Tensor

from metaopt.network import LeakyReLU, Weights, forward
from metaopt.schema import TaskConfig
from metaopt.streams import Stream
from metaopt.symmetry import (
    Action,
    BoundedNorm,
    Cayley,
    ElementMap,
    Exponential,
    FirstOrder,
    FixedNorm,
    GroupElement,
    Guard,
    InexactActionError,
    LayerPair,
    Linear,
    NormLimit,
    Orthogonal,
    Permutation,
    Refuse,
    Scaling,
    Shrink,
    TeleportEngine,
    ThroughData,
    Unguarded,
    drift,
    frobenius_norm,
    permutation,
)
from metaopt.tasks import RegressionFamily, TaskBatch

CONTINUOUS: list[Action] = [ThroughData(), Linear(), Scaling(), Orthogonal()]
ACTIONS: list[Action] = [*CONTINUOUS, Permutation()]
MAX_NORM = 1.0

every_action = pytest.mark.parametrize("action", ACTIONS, ids=lambda action: type(action).__name__)
every_continuous_action = pytest.mark.parametrize(
    "action", CONTINUOUS, ids=lambda action: type(action).__name__
)


@dataclass(frozen=True)
class Problem:
    """Sizes and seed of a random layer pair; N = min(samples, n) where the action needs that."""

    batch: int
    n: int
    k: int
    m: int
    samples: int
    slope: float
    seed: int


problems = st.builds(
    Problem,
    batch=batches,
    n=widths,
    k=widths,
    m=widths,
    samples=st.integers(1, 8),
    slope=slopes,
    seed=seeds,
)


def layer_pair(problem: Problem, action: Action, bias: bool = True) -> LayerPair:
    """A signed pair on which the action is exact."""
    batch, n, k, m, seed = problem.batch, problem.n, problem.k, problem.m, problem.seed
    samples = min(problem.samples, n) if action.needs_data else problem.samples
    A = full_rank(batch, n, samples, seed=seed)
    return LayerPair(
        W_in=signed(batch, k, n, seed=seed + 1),
        W_out=signed(batch, m, k, seed=seed + 2),
        s=LeakyReLU(1.0 if isinstance(action, Linear) else problem.slope),
        b_in=signed(batch, k, seed=seed + 3) if bias else None,
        inputs=A,
        inputs_pinv=torch.linalg.pinv(A),
    )


def element(action: Action, problem: Problem, salt: int) -> GroupElement:
    """A random element of the group."""
    k, seed = problem.k, problem.seed + salt
    if isinstance(action, Permutation):
        return permutation(signed(problem.batch, k, seed=seed).argsort(-1), torch.float64)
    T = BoundedNorm(MAX_NORM)(signed(problem.batch, k, k, seed=seed))
    return Exponential(MAX_NORM)(action.algebra(T))


def outputs(pair: LayerPair) -> Tensor:
    """W_out s(W_in A + b_in)."""
    assert pair.inputs is not None
    Z = pair.W_in @ pair.inputs
    if pair.b_in is not None:
        Z = Z + pair.b_in[..., None]
    return pair.W_out @ pair.s(Z)


def assert_same(found: LayerPair, wanted: LayerPair, tolerance: float = 1e-11) -> None:
    assert relative_error(found.W_in, wanted.W_in) < tolerance
    assert relative_error(found.W_out, wanted.W_out) < tolerance
    if wanted.b_in is None:
        assert found.b_in is None
    else:
        assert found.b_in is not None
        torch.testing.assert_close(found.b_in, wanted.b_in, rtol=tolerance, atol=tolerance)


# The laws of a group action.


@every_action
@FEW
@given(problem=problems, bias=st.booleans())
def test_identity_does_nothing(action: Action, problem: Problem, bias: bool) -> None:
    pair = layer_pair(problem, action, bias)
    identity = torch.eye(problem.k, dtype=torch.float64).expand(problem.batch, -1, -1)
    assert_same(action.act(GroupElement(identity, identity), pair), pair, 1e-13)


@every_action
@FEW
@given(problem=problems)
def test_inverse_undoes(action: Action, problem: Problem) -> None:
    pair = layer_pair(problem, action)
    g = element(action, problem, 10)
    moved = action.act(g, pair)
    assert_same(action.act(GroupElement(g.g_inv, g.g), moved), pair)


@every_action
@FEW
@given(problem=problems)
def test_composition(action: Action, problem: Problem) -> None:
    pair = layer_pair(problem, action)
    g, h = element(action, problem, 10), element(action, problem, 11)
    gh = GroupElement(g.g @ h.g, h.g_inv @ g.g_inv)
    assert_same(action.act(g, action.act(h, pair)), action.act(gh, pair))


@every_action
@FEW
@given(problem=problems, bias=st.booleans())
def test_outputs_are_kept(action: Action, problem: Problem, bias: bool) -> None:
    pair = layer_pair(problem, action, bias)
    moved = action.act(element(action, problem, 10), pair)
    assert relative_error(outputs(moved), outputs(pair)) < 1e-11


@every_action
def test_elements_move_the_weights(action: Action) -> None:
    problem = Problem(batch=3, n=5, k=4, m=3, samples=5, slope=0.1, seed=0)
    pair = layer_pair(problem, action)
    moved = action.act(element(action, problem, 10), pair)
    assert (torch.linalg.matrix_norm(moved.W_in - pair.W_in) > 0.05).all()
    assert (torch.linalg.matrix_norm(moved.W_out - pair.W_out) > 0.05).all()


@every_continuous_action
@FEW
@given(problem=problems)
def test_algebra_is_a_projection(action: Action, problem: Problem) -> None:
    T = signed(problem.batch, problem.k, problem.k, seed=problem.seed)
    projected = action.algebra(T)
    assert torch.equal(action.algebra(projected), projected)
    assert (frobenius_norm(projected) <= frobenius_norm(T)).all()


def test_elements_lie_in_their_groups() -> None:
    problem = Problem(batch=3, n=4, k=4, m=4, samples=4, slope=0.1, seed=0)
    identity = torch.eye(4, dtype=torch.float64).expand(3, -1, -1)
    Q = element(Orthogonal(), problem, 0).g
    assert relative_error(Q.mT @ Q, identity) < 1e-14
    D = element(Scaling(), problem, 0).g
    assert torch.equal(D, torch.diag_embed(torch.diagonal(D, dim1=-2, dim2=-1)))
    assert (torch.diagonal(D, dim1=-2, dim2=-1) > 0).all()
    order = torch.tensor([[2, 0, 1], [1, 0, 2]])
    z = signed(2, 3, seed=0)
    P = permutation(order, torch.float64)
    assert torch.equal((P.g @ z[..., None])[..., 0], z.gather(1, order))
    assert torch.equal((P.g @ P.g_inv), torch.eye(3, dtype=torch.float64).expand(2, -1, -1))


# The action through the data.


@FEW
@given(problem=problems, missing=st.integers(1, 4))
def test_through_data_keeps_what_the_data_do_not_see(problem: Problem, missing: int) -> None:
    action = ThroughData()
    problem = replace(problem, n=problem.n + missing, samples=problem.n)
    pair = layer_pair(problem, action)
    assert pair.inputs is not None
    assert pair.inputs_pinv is not None
    moved = action.act(element(action, problem, 10), pair)
    unseen = torch.eye(problem.n, dtype=torch.float64) - pair.inputs @ pair.inputs_pinv
    assert float(torch.linalg.matrix_norm(unseen).min()) > 0.9
    assert relative_error(moved.W_in @ unseen, pair.W_in @ unseen) < 1e-12


@FEW
@given(problem=problems)
def test_through_data_is_the_papers_form_on_square_data(problem: Problem) -> None:
    action = ThroughData()
    problem = replace(problem, samples=problem.n)
    pair = layer_pair(problem, action, bias=False)
    assert pair.inputs is not None
    g = element(action, problem, 10)
    moved = action.act(g, pair)
    H = g.g @ pair.s(pair.W_in @ pair.inputs)
    paper = (H.clamp(min=0) + H.clamp(max=0) / pair.s.slope) @ torch.linalg.inv(pair.inputs)
    assert relative_error(moved.W_in, paper) < 1e-11
    assert relative_error(moved.W_out, pair.W_out @ torch.linalg.inv(g.g)) < 1e-11


def test_through_data_without_data_is_an_error() -> None:
    problem = Problem(batch=2, n=3, k=3, m=2, samples=3, slope=0.1, seed=0)
    pair = layer_pair(problem, ThroughData())
    with pytest.raises(ValueError, match="needs the inputs"):
        ThroughData().act(element(ThroughData(), problem, 1), replace(pair, inputs_pinv=None))


@pytest.mark.parametrize(
    ("action", "slope", "samples", "exact"),
    [
        (ThroughData(), 0.1, 4, True),
        (ThroughData(), 0.1, 3, True),
        (ThroughData(), 0.1, 5, False),
        (Linear(), 1.0, 9, True),
        (Linear(), 0.1, 2, False),
        (Orthogonal(), 1.0, 9, True),
        (Orthogonal(), 0.5, 2, False),
        (Scaling(), 0.1, 9, True),
        (Permutation(), 0.1, 9, True),
    ],
)
def test_require_exact_tells_the_truth(
    action: Action, slope: float, samples: int, exact: bool
) -> None:
    problem = Problem(batch=2, n=4, k=4, m=3, samples=samples, slope=slope, seed=1)
    A = full_rank(2, 4, samples, seed=0)
    pair = replace(
        layer_pair(problem, action, bias=False),
        s=LeakyReLU(slope),
        inputs=A,
        inputs_pinv=torch.linalg.pinv(A),
    )
    error = relative_error(outputs(action.act(element(action, problem, 10), pair)), outputs(pair))
    if exact:
        action.require_exact(LeakyReLU(slope), samples, inputs=4)
        assert error < 1e-12
    else:
        with pytest.raises(InexactActionError, match="found"):
            action.require_exact(LeakyReLU(slope), samples, inputs=4)
        assert error > 1e-3


# Maps from generators to elements.


def _of_norm(norm: float, dtype: torch.dtype, k: int = 6, seed: int = 0) -> Tensor:
    """Of Frobenius norm ``norm``: random, and those for which a series converges slowest.

    The eigenvalues of a random matrix are far smaller than its norm; a projection's is as large.
    """
    T = signed(5, k, k, seed=seed)
    u = signed(k, seed=seed + 1)
    T[1] = torch.outer(u, u)
    T[2] = -T[1]
    T[3] = torch.outer(u, signed(k, seed=seed + 2))
    T[4] = T[3] - T[3].T
    return (norm * T / torch.linalg.matrix_norm(T)[:, None, None]).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str
)
@pytest.mark.parametrize("max_norm", [0.01, 0.3, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("share", [1.0, 0.5, 1e-3, 0.0])
def test_exponential(max_norm: float, share: float, dtype: torch.dtype, tolerance: float) -> None:
    T = _of_norm(share * max_norm, dtype)
    g, g_inv = Exponential(max_norm)(T)
    growth = math.exp(share * max_norm)
    for found, sign in ((g, 1), (g_inv, -1)):
        assert found.dtype == dtype
        wanted = torch.linalg.matrix_exp(sign * T.double())
        assert float((found.double() - wanted).abs().max()) < tolerance * growth
    identity = torch.eye(6, dtype=torch.float64)
    product = g.double() @ g_inv.double()
    assert float((product - identity).abs().max()) < tolerance * growth**2


@pytest.mark.parametrize("norm", [0.0, 0.1, 1.0, 1.9])
def test_cayley(norm: float) -> None:
    T = _of_norm(norm, torch.float64)
    identity = torch.eye(6, dtype=torch.float64)
    g, g_inv = Cayley()(T)
    assert float((g @ g_inv - identity).abs().max()) < 1e-12
    assert float(((identity - T / 2) @ g - (identity + T / 2)).abs().max()) < 1e-12
    skew = Orthogonal().algebra(T)
    Q, Q_inv = Cayley()(skew)
    assert float((Q @ Q.mT - identity).abs().max()) < 1e-13
    assert float((Q_inv - Q.mT).abs().max()) < 1e-13


def test_exponential_and_cayley_agree_with_first_order_to_second_order() -> None:
    T = _of_norm(1e-3, torch.float64)
    first = FirstOrder()(T)
    for to_element in (Exponential(1.0), Cayley()):
        for found, wanted in zip(to_element(T), first, strict=True):
            difference = float(torch.linalg.matrix_norm(found - wanted).max())
            assert 1e-8 < difference < 1e-6


@pytest.mark.parametrize("norm", [0.01, 1.0])
def test_first_order_pair_is_no_inverse_pair(norm: float) -> None:
    T = _of_norm(norm, torch.float64)
    g, g_inv = FirstOrder()(T)
    identity = torch.eye(6, dtype=torch.float64)
    assert torch.equal(g, identity + T)
    assert torch.equal(g_inv, identity - T)
    assert float((g @ g_inv - (identity - T @ T)).abs().max()) < 1e-15


@pytest.mark.parametrize(("norm", "figure"), [(0.01, 1.4e-6), (0.1, 1.4e-4), (1.0, 1.4e-2)])
def test_first_order_drift_is_the_designs(norm: float, figure: float) -> None:
    tasks = RegressionFamily(TaskConfig()).sample(Stream.TEST, 0, 0, 32, torch.float64)
    T = signed(32, 20, 20, seed=0)
    inexact = TeleportEngine(ThroughData(), FirstOrder(), FixedNorm(norm), Unguarded(), True)
    exact = replace_map(inexact, Exponential(norm))
    _, report = inexact.teleport(tasks.initial, (T,), tasks)
    assert figure / 2 < float(report.drift.mean()) < 2 * figure
    _, report = exact.teleport(tasks.initial, (T,), tasks)
    assert float(report.drift.max()) < 1e-13


def replace_map(engine: TeleportEngine, to_element: ElementMap) -> TeleportEngine:
    return TeleportEngine(
        engine.action, to_element, engine.limit, engine.guard, engine.require_exact
    )


# Norm limits.


@FEW
@given(seed=seeds, k=widths, exponent=st.integers(-12, 12), c=st.sampled_from([0.01, 1.0, 3.0]))
def test_bounded_norm(seed: int, k: int, exponent: int, c: float) -> None:
    T = 10.0**exponent * signed(2, k, k, seed=seed)
    limited = BoundedNorm(c)(T)
    before, after = frobenius_norm(T), frobenius_norm(limited)
    assert (after <= c * (1 + 1e-14)).all()
    torch.testing.assert_close(after, before / (1 + (before / c) ** 2).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(limited / after[:, None, None], T / before[:, None, None])


@FEW
@given(seed=seeds, k=widths, exponent=st.integers(-12, 12), c=st.sampled_from([0.01, 1.0, 3.0]))
def test_fixed_norm(seed: int, k: int, exponent: int, c: float) -> None:
    T = 10.0**exponent * signed(2, k, k, seed=seed)
    limited = FixedNorm(c)(T)
    norms = frobenius_norm(limited)
    torch.testing.assert_close(norms, torch.full_like(norms, c), rtol=1e-14, atol=0)
    torch.testing.assert_close(limited / c, T / frobenius_norm(T)[:, None, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("limit", [BoundedNorm(0.5), FixedNorm(0.5)], ids=["bounded", "fixed"])
def test_zero_generator_stays_zero_with_finite_gradient(
    limit: NormLimit, dtype: torch.dtype
) -> None:
    T = torch.zeros(2, 3, 3, dtype=dtype, requires_grad=True)
    limited = limit(T)
    assert torch.equal(limited, torch.zeros_like(T))
    (limited * signed(2, 3, 3, seed=0, dtype=dtype)).sum().backward()
    assert T.grad is not None
    assert T.grad.isfinite().all()
    assert T.grad.abs().sum() > 0
    (norm_gradient,) = torch.autograd.grad(frobenius_norm(T).sum(), T)
    assert torch.equal(norm_gradient, torch.zeros_like(T))


@pytest.mark.parametrize("limit", [BoundedNorm(0.5), FixedNorm(0.5)], ids=["bounded", "fixed"])
def test_norm_limits_pass_gradcheck(limit: NormLimit) -> None:
    assert torch.autograd.gradcheck(limit, (signed(2, 3, 3, seed=0).requires_grad_(),))


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


# Derivatives.


def _gradcheck(function: Callable[..., Any], inputs: list[Tensor]) -> bool:
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    return torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize(
    "to_element", [Exponential(1.0), Cayley(), FirstOrder()], ids=["exp", "cayley", "first_order"]
)
@every_continuous_action
def test_gradcheck_of_actions(action: Action, to_element: ElementMap) -> None:
    problem = Problem(batch=2, n=3, k=2, m=2, samples=3, slope=0.1, seed=5)
    pair = layer_pair(problem, action)
    assert pair.b_in is not None

    def moved(T: Tensor, W_in: Tensor, b_in: Tensor, W_out: Tensor) -> tuple[Tensor, ...]:
        acted = action.act(
            to_element(action.algebra(T)), replace(pair, W_in=W_in, b_in=b_in, W_out=W_out)
        )
        assert acted.b_in is not None
        return acted.W_in, acted.b_in, acted.W_out

    T = 0.5 * signed(2, 2, 2, seed=1)
    assert _gradcheck(moved, [T, pair.W_in, pair.b_in, pair.W_out])


def test_gradcheck_of_permutation() -> None:
    problem = Problem(batch=2, n=3, k=3, m=2, samples=3, slope=0.1, seed=5)
    pair = layer_pair(problem, Permutation(), bias=False)
    g = element(Permutation(), problem, 0)

    def moved(W_in: Tensor, W_out: Tensor) -> tuple[Tensor, ...]:
        acted = Permutation().act(g, replace(pair, W_in=W_in, W_out=W_out))
        return acted.W_in, acted.W_out

    assert _gradcheck(moved, [pair.W_in, pair.W_out])


@pytest.mark.parametrize("sizes", [[3, 2, 3, 2], [3, 3, 2, 3, 2]], ids=["3 layers", "4 layers"])
@every_continuous_action
def test_gradcheck_of_the_engine(action: Action, sizes: list[int]) -> None:
    tasks = _deep(action, sizes, seed=3)
    engine = _engine(action)
    layers = len(tasks.initial)

    def moved(*inputs: Tensor) -> tuple[Tensor, ...]:
        generators = tuple(engine.limit(action.algebra(T)) for T in inputs[layers:])
        return engine.move(inputs[:layers], generators, tasks)

    assert _gradcheck(moved, [*tasks.initial, *_generators(sizes, 3)])


@pytest.mark.parametrize(
    "guard", [Unguarded(), Refuse(1e-6), Shrink(1e-6)], ids=["none", "refuse", "shrink"]
)
def test_gradcheck_of_a_guarded_teleport(guard: Guard) -> None:
    tasks = _deep(ThroughData(), [3, 2, 2], seed=3)
    engine = _engine(ThroughData(), guard)

    def moved(W1: Tensor, W2: Tensor, T: Tensor) -> tuple[Tensor, ...]:
        return engine.teleport((W1, W2), (T,), tasks)[0]

    assert _gradcheck(moved, [*tasks.initial, signed(2, 2, 2, seed=4)])
