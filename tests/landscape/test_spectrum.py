"""Traces, eigenvalues and damped directions against matrices that are decomposed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import signed
from torch import Tensor

from metaopt.landscape import spectrum as module
from metaopt.landscape.products import Product
from metaopt.landscape.spectrum import extremes, hutchinson, newton_cosine, spectrum

P = 80


def matrix(least: float, largest: float, seed: int = 0) -> Tensor:
    """A symmetric matrix with eigenvalues from ``least`` to ``largest``."""
    Q, _ = torch.linalg.qr(signed(P, P, seed=seed))
    return Q @ torch.diag(torch.linspace(least, largest, P, dtype=torch.float64)) @ Q.mT


def product_of(M: Tensor) -> Product:
    return lambda rows: rows @ M


def numbers(name: str) -> np.random.Generator:
    return np.random.default_rng(len(name))


ENDS = pytest.mark.parametrize("ends", [(0.0, 3.0), (-1.0, 3.0), (-5.0, 3.0), (-5.0, -1.0)])


@ENDS
def test_extremes(ends: tuple[float, float]) -> None:
    found = extremes(product_of(matrix(*ends)), signed(P, seed=1))
    wanted = (ends[1], max(map(abs, ends)))
    assert found == pytest.approx(wanted, abs=1e-4 * wanted[1])


@ENDS
@pytest.mark.parametrize("shift", [1.0, 1e-1])
def test_cosines_with_damped_directions(ends: tuple[float, float], shift: float) -> None:
    M, b = matrix(*ends), signed(P, seed=2)
    values, vectors = torch.linalg.eigh(M)
    d = vectors @ ((vectors.mT @ b) / (values.abs() + shift))
    cosine, change, diagonal, basis = newton_cosine(product_of(M), b, shift)
    assert cosine == pytest.approx(float(b @ d / b.norm() / d.norm()), abs=1e-3)
    assert 0 <= change <= module.TOLERANCE
    assert len(basis) < P or ends[0] * ends[1] < 0
    torch.testing.assert_close(basis @ basis.mT, torch.eye(len(basis), dtype=torch.float64))
    assert diagonal == pytest.approx(float((basis @ M @ basis.mT).trace()), rel=1e-10)


def test_one_step_does_not_find_the_moduli_of_opposite_eigenvalues() -> None:
    """T has |T| = b 1 after two steps if T = [[0, b], [b, 0]], which says nothing of M."""
    M = matrix(-3, 3)
    values, vectors = torch.linalg.eigh(M)
    b = vectors.sum(1)
    d = vectors @ (torch.ones(P, dtype=torch.float64) / (values.abs() + 0.3))
    cosine, *_ = newton_cosine(product_of(M), b, 0.3)
    assert cosine == pytest.approx(float(b @ d / b.norm() / d.norm()), abs=1e-3)
    assert cosine < 0.9


def test_no_gradient_has_no_direction() -> None:
    cosine, *_, basis = newton_cosine(product_of(matrix(0, 1)), torch.zeros(P).double(), 1.0)
    assert np.isnan(cosine)
    assert len(basis) == 0
    none = spectrum(product_of(torch.zeros(P, P).double()), signed(P, seed=1), 1e-2, numbers)
    assert np.isnan(none.cosine)
    assert none.eigenvalue == none.trace == 0


def test_hutchinson_is_exact_for_diagonals_and_within_its_error_else() -> None:
    D, none = torch.diag(signed(P, seed=3)), torch.empty(0, P, dtype=torch.float64)
    trace, error = hutchinson(product_of(D), none, np.random.default_rng(0))
    assert trace == pytest.approx(float(D.trace()), rel=1e-12)
    assert error < 1e-12
    M, Q = matrix(-1, 3), torch.linalg.qr(signed(P, 5, seed=4)).Q.mT
    runs = [hutchinson(product_of(M), Q, np.random.default_rng(i)) for i in range(200)]
    wanted = float(M.trace() - (Q @ M @ Q.mT).trace())
    scores = torch.tensor([(trace - wanted) / error for trace, error in runs])
    assert abs(float(scores.mean())) < 0.3
    assert 0.8 < float(scores.std()) < 1.25


@pytest.mark.parametrize("ends", [(0.0, 3.0), (-1.0, 3.0)])
def test_large_matrices_are_as_small_ones(
    ends: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    M, g = matrix(*ends), signed(P, seed=4)
    exact = spectrum(product_of(M), g, 1e-2, numbers)
    assert exact.trace == pytest.approx(float(M.trace()), rel=1e-12)
    assert exact.eigenvalue == pytest.approx(3, rel=1e-12)
    monkeypatch.setattr(module, "EXACT", 0)
    found = spectrum(product_of(M), g, 1e-2, numbers)
    assert abs(found.trace - exact.trace) < 4 * found.trace_error + 1e-9
    assert found.eigenvalue == pytest.approx(exact.eigenvalue, rel=1e-4)
    assert found.cosine == pytest.approx(exact.cosine, rel=1e-3)
    assert spectrum(product_of(M), g, 1e-2, numbers) == found


def test_what_has_overflowed_has_no_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    M = matrix(0, 1)
    M[0, 0] = torch.inf
    for most in (P, 0):
        monkeypatch.setattr(module, "EXACT", most)
        assert np.isnan(spectrum(product_of(M), signed(P, seed=1), 1e-2, numbers).cosine)


def test_what_is_not_found_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 3)
    with pytest.warns(UserWarning, match=r"relative residual of .* after 3"):
        extremes(product_of(matrix(0, 1)), signed(P, seed=1))
