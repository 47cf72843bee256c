"""Closed forms of single steps against grids, gradients and planted elements."""

from __future__ import annotations

import pytest
import torch
from support import signed
from torch import Tensor

from metaopt.landscape.between.align_solutions import Moments, general, procrustes, scales, turned


def moments(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Moments:
    return Moments(A @ B.mT, B @ B.mT, C @ D.mT, D @ D.mT)


@pytest.mark.parametrize("signed_too", [False, True])
def test_scales_against_a_grid(signed_too: bool) -> None:
    p, q = 3 * signed(300, 1, seed=1)[:, 0], 3 * signed(300, 1, seed=2)[:, 0]
    b, d = (signed(300, 1, seed=i)[:, 0].square() + 0.01 for i in (3, 4))
    s, value = scales(p, b, q, d, signed_too)
    grid = torch.logspace(-4, 4, 20001, dtype=torch.float64)
    if signed_too:
        grid = torch.cat([grid, -grid])
    heights = b[:, None] * grid**2 - 2 * p[:, None] * grid + d[:, None] / grid**2
    heights = heights - 2 * q[:, None] / grid
    assert bool((value <= heights.amin(1) + 1e-9 * (1 + value.abs())).all())
    slope = 2 * b * s - 2 * p - 2 * d / s**3 + 2 * q / s**2
    size = 2 * b * s.abs() + 2 * p.abs() + 2 * d / s.abs() ** 3 + 2 * q.abs() / s**2
    assert bool((slope.abs() <= 1e-11 * size).all())


def test_scales_of_units_with_one_side() -> None:
    one, none = torch.tensor([2.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert float(scales(3 * one, one, none, none, False)[0]) == 3
    assert float(scales(none, none, one, 2 * one, False)[0]) == 2
    assert float(scales(none, none, none, none, False)[0]) == 1


def test_general_linear_finds_what_is_planted_and_else_a_minimum() -> None:
    B, D = signed(2 * 4, 9, seed=1).reshape(2, 4, 9), signed(2 * 4, 7, seed=2).reshape(2, 4, 7)
    g = torch.linalg.matrix_exp(0.3 * signed(8, 4, seed=3).reshape(2, 4, 4))
    found, inverse = general(moments(g @ B, B, torch.linalg.inv(g).mT @ D, D))
    torch.testing.assert_close(found, g, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found @ inverse, torch.eye(4).double().expand(2, 4, 4))
    A, C = (
        B + 0.5 * signed(8, 9, seed=4).reshape(2, 4, 9),
        D + signed(8, 7, seed=5).reshape(2, 4, 7),
    )
    own = moments(A, B, C, D)
    found, inverse = general(own)
    T = torch.zeros(2, 4, 4, dtype=torch.float64, requires_grad=True)
    step = torch.linalg.matrix_exp(T)
    back = inverse @ torch.linalg.matrix_exp(-T)
    height = own.height(step @ found, back.mT).sum()
    (slope,) = torch.autograd.grad(height, T)
    assert float(slope.abs().max()) < 1e-4 * abs(float(height.detach()))
    eye = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    assert bool((own.height(found, inverse.mT) <= own.height(eye, eye)).all())


def test_procrustes_and_pairs() -> None:
    B = signed(4, 9, seed=1)
    Q = procrustes(signed(4, 4, seed=2))
    torch.testing.assert_close(procrustes(Q @ B @ B.mT), Q)
    B, D = signed(6, 5, seed=3).reshape(3, 2, 5), signed(6, 5, seed=4).reshape(3, 2, 5)
    t = torch.tensor([0.5, -0.7, 0.0], dtype=torch.float64)
    u = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    rows = torch.stack([u.cos(), -u.sin(), u.sin(), u.cos()], -1).reshape(3, 2, 2)
    scale = t.exp()[:, None, None]
    found = turned(moments(scale * rows @ B, B, rows @ D / scale, D), is_compact=False)
    torch.testing.assert_close(found[0], t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], u, rtol=1e-6, atol=1e-6)
