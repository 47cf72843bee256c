"""The plane of docs/results/level_sets.md: closed forms, and what the command prints is on it."""

from __future__ import annotations

import numpy as np
import pytest

from studies.level_sets import LR, PAGE, START, descent, geometry, losses, orbit, table

T = np.linspace(-1.5, 1.5, 13)


def test_the_orbit_is_a_scaling_and_a_level_set() -> None:
    points = orbit(START, T)
    expected = np.stack([START[0] * np.exp(T), START[1] * np.exp(-T)], axis=1)
    np.testing.assert_allclose(points, expected, rtol=1e-12)
    np.testing.assert_allclose(losses(points), losses(np.array([START]))[0], rtol=1e-12)


def test_gradient_and_newton_have_closed_forms() -> None:
    points = orbit(START, T)
    residual = 1 - points[:, 0] * points[:, 1]
    norms, cosines = geometry(points)
    np.testing.assert_allclose(norms, np.abs(residual) * np.linalg.norm(points, axis=1), rtol=1e-12)
    # At w1 = w2 the gradient is an eigenvector of the Hessian.
    assert cosines[6] == pytest.approx(1.0, abs=1e-12)
    assert cosines.argmax() == 6


def test_descent_is_gradient_descent() -> None:
    w1, w2 = 0.5, 0.3
    residual = 1 - w1 * w2
    np.testing.assert_allclose(
        descent((w1, w2), LR, 1), [[w1, w2], [w1 + LR * residual * w2, w2 + LR * residual * w1]]
    )


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.path.read_text(encoding="utf-8")
