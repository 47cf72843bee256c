"""Traces, eigenvalues and damped directions against matrices that are decomposed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import signed
from torch import Tensor

from metaopt.landscape import spectrum as module
from metaopt.landscape.products import Product
from metaopt.landscape.spectrum import extremes, hutchinson, solved, spectrum

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
@pytest.mark.parametrize("shift", [1.0, 1e-2])
def test_damped_systems_are_solved(ends: tuple[float, float], shift: float) -> None:
    M, b = matrix(*ends), signed(P, seed=2)
    values, vectors = torch.linalg.eigh(M)
    moduli = vectors @ torch.diag(values.abs() + shift) @ vectors.mT
    found = solved(product_of(M), b, shift)
    # Where there are eigenvalues of both signs, the tolerance is no bound.
    bound = 3e-2 if ends[0] * ends[1] < 0 else 1.01 * module.TOLERANCE
    assert float((moduli @ found - b).norm() / b.norm()) < bound


def test_nothing_is_solved_for_no_gradient_or_no_matrix() -> None:
    assert not solved(product_of(matrix(0, 1)), torch.zeros(P, dtype=torch.float64), 1.0).any()
    assert not solved(product_of(torch.zeros(P, P).double()), signed(P, seed=1), 0.0).any()


def test_hutchinson_is_exact_for_diagonals_and_within_its_error_else() -> None:
    D = torch.diag(signed(P, seed=3))
    trace, error = hutchinson(product_of(D), D[0], np.random.default_rng(0))
    assert trace == pytest.approx(float(D.trace()), rel=1e-12)
    assert error < 1e-12
    M = matrix(-1, 3)
    runs = [hutchinson(product_of(M), M[0], np.random.default_rng(i)) for i in range(200)]
    scores = torch.tensor([(trace - float(M.trace())) / error for trace, error in runs])
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
    assert abs(found.trace - exact.trace) < 4 * found.trace_error
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
    with pytest.warns(UserWarning, match="largest eigenvalue has a relative residual of"):
        extremes(product_of(matrix(0, 1)), signed(P, seed=1))
