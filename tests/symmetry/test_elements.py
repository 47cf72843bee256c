"""Generators and elements: maps against torch, exact pairs, norm limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import (
    FEW,
    seeds,
    signed,
    widths,
)
from torch import Tensor

from metaopt.base.streams import Stream
from metaopt.symmetry.actions import Orthogonal, ThroughData
from metaopt.symmetry.limits import BoundedNorm, FixedNorm, NormLimit, frobenius_norm
from metaopt.symmetry.maps import Cayley, ElementMap, Exponential, FirstOrder
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.regression import RegressionFamily
from metaopt.teleport.engine import TeleportEngine
from metaopt.teleport.guard import Unguarded

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
        engine.action,
        to_element,
        engine.limit,
        engine.guard,
        engine.require_exact,
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
