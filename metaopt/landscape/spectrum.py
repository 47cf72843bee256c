"""Trace, largest eigenvalue and damped Newton direction of a symmetric matrix M given by products.

    trace       tr Q M Q^T + E z^T M z,   z random signs less their part in the rows of Q
    eigenvalue  the largest, by Lanczos' method
    direction   d = -(|M| + lambda)^-1 grad L,  lambda a share of the largest |eigenvalue|

|M| has the moduli of M's eigenvalues; for a Gauss-Newton matrix it is M itself. A matrix of up to
``EXACT`` rows is written out and decomposed. A larger one is projected on the Krylov space of the
gradient, of which Q is an orthonormal basis with grad L / |grad L| as its first row: T = Q M Q^T is
tridiagonal, and the cosine of grad L with d is that of e_1 with (|T| + lambda)^-1 e_1, by Gauss'
quadrature. What Q leaves of the trace is small, and Hutchinson's estimate of it has a small error.

References:
    Hutchinson (1989) for the trace, Meyer et al., arXiv 2010.09649, for taking a space out first;
    Golub and Meurant, Matrices, Moments and Quadrature (2010), for Lanczos' method and quadrature;
    Dauphin et al., arXiv 1406.2572, for the moduli.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metaopt.landscape.products import Product

EXACT = 1024
"""Rows up to which a matrix is written out."""
PROBES = 32
"""Vectors of signs in the mean that estimates a trace."""
TOLERANCE = 1e-4
"""|M v - theta v| at which an eigenvalue theta is found, relative to the largest modulus of one;
and the change of a cosine by the last products at which it is found."""
LAST = 20
"""How many products these are."""
STEPS = 300
"""Products that a Krylov space may take."""


@dataclass(frozen=True)
class Spectrum:
    """What is known of a matrix M at a gradient.

    Attributes:
        trace: tr M.
        trace_error: the standard error of the trace; 0 if it is exact.
        eigenvalue: the largest eigenvalue of M.
        cosine: cos(-grad L, d), d the damped direction; NaN if either is 0.
        cosine_error: by how much the cosine moved in the last ``LAST`` products; 0 if it is exact.
    """

    trace: float
    trace_error: float
    eigenvalue: float
    cosine: float
    cosine_error: float


def spectrum(
    product: Product,
    gradient: Tensor,
    damping: float,
    generator: Callable[[str], np.random.Generator],
) -> Spectrum:
    """Trace, largest eigenvalue, and the cosine of -grad L with -(|M| + lambda)^-1 grad L.

    Args:
        product: V [m, P] -> M V, float64.
        gradient: grad L, [P], float64.
        damping: lambda divided by the largest modulus of an eigenvalue, above 0.
        generator: random numbers by what they are for; unused up to ``EXACT`` rows.
    """
    try:
        if is_small(len(gradient)):
            return _dense(product, gradient, damping)
        return _projected(product, gradient, damping, generator)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # What has overflowed has no eigenvalues.
        return Spectrum(*[math.nan] * 5)


def is_small(size: int) -> bool:
    """Whether a matrix of so many rows is written out."""
    return size <= EXACT


def _projected(
    product: Product,
    gradient: Tensor,
    damping: float,
    generator: Callable[[str], np.random.Generator],
) -> Spectrum:
    start = torch.from_numpy(generator("Lanczos").standard_normal(len(gradient))).to(gradient)
    largest, modulus = extremes(product, start)
    cosine, change, diagonal, basis = newton_cosine(product, gradient, damping * modulus)
    rest, error = hutchinson(product, basis, generator("Hutchinson"))
    return Spectrum(diagonal + rest, error, largest, cosine, change)


def _dense(product: Product, gradient: Tensor, damping: float) -> Spectrum:
    M = product(torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device))
    values, vectors = torch.linalg.eigh((M + M.mT) / 2)
    moduli = values.abs()
    along = (vectors.mT @ gradient) / gradient.norm()
    cosine = _cosine(along, along / (moduli + damping * moduli.max()))
    return Spectrum(float(M.trace()), 0.0, float(values[-1]), cosine, 0.0)


def hutchinson(
    product: Product, basis: Tensor, numbers: np.random.Generator, probes: int = PROBES
) -> tuple[float, float]:
    """tr (1 - Q^T Q) M (1 - Q^T Q) = E z^T M z: the mean over some z, and its standard error.

    Args:
        product: V [m, P] -> M V.
        basis: Q, [s, P], orthonormal rows; s may be 0, and then this is the trace of M.
        numbers: where the signs come from.
        probes: how many vectors, at least 2.
    """
    signs = numbers.integers(0, 2, (probes, basis.shape[1]), dtype=np.int8)
    z = 2 * torch.from_numpy(signs).to(basis) - 1
    z = z - (z @ basis.mT) @ basis
    found = (z * product(z)).sum(1)
    return float(found.mean()), float(found.std() / math.sqrt(probes))


def extremes(product: Product, start: Tensor) -> tuple[float, float]:
    """The largest eigenvalue of M, and the largest modulus of one.

    Args:
        product: V [m, P] -> M V.
        start: [P], where the Krylov space starts.
    """

    def residual(values: Tensor, vectors: Tensor, beta: float) -> float:
        ends = torch.stack([values.argmax(), values.abs().argmax()])
        return float(beta * vectors[-1, ends].abs().max() / values.abs().max())

    values, _, left = _krylov(product, start, residual)
    if left > TOLERANCE:
        warnings.warn(
            f"the largest eigenvalue has a relative residual of {left:.1e} after {STEPS} products, "
            f"wanted {TOLERANCE:.0e}",
            stacklevel=2,
        )
    return float(values[-1]), float(values.abs().max())


def newton_cosine(
    product: Product, gradient: Tensor, shift: float
) -> tuple[float, float, float, Tensor]:
    """The cosine of grad L with (|M| + shift)^-1 grad L, its last change, tr Q M Q^T, Q [s, P].

    Args:
        product: V [m, P] -> M V.
        gradient: grad L, [P].
        shift: lambda.
    """
    if not gradient.any():
        return math.nan, math.nan, 0.0, gradient.new_empty(0, len(gradient))
    cosines: list[float] = []

    def change(values: Tensor, vectors: Tensor, beta: float) -> float:
        cosines.append(_cosine(vectors[0], vectors[0] / (values.abs() + shift)))
        last = cosines[-LAST - 1 :]
        return max(last) - min(last) if len(last) > LAST else math.inf

    values, basis, left = _krylov(product, gradient, change)
    return cosines[-1], left, float(values.sum()), basis


def _krylov(
    product: Product, start: Tensor, left: Callable[[Tensor, Tensor, float], float]
) -> tuple[Tensor, Tensor, float]:
    """Lanczos' method: M on the space of start, M start, M^2 start, ..

    Eigenvalues [s] of T = Q M Q^T; Q [s, P], orthonormal rows of which the first is the start's
    direction; and what is left to find, 0 if the space is all that M makes of the start.

    Args:
        product: V [m, P] -> M V.
        start: [P], not 0.
        left: what is to be at most ``TOLERANCE``, of the eigenvalues and eigenvectors (columns) of
            T and the norm of what the last step added.
    """
    most = min(STEPS, len(start))
    basis = start.new_empty(min(most, 16), len(start))
    basis[0] = start / start.norm()
    T = start.new_zeros(most, most)
    for i in range(most):
        Q = basis[: i + 1]
        rest = product(Q[i:])[0]
        T[i, i] = rest @ Q[i]
        # Twice is enough: rounding would bring copies of eigenvalues back.
        for _ in range(2):
            rest = rest - Q.mT @ (Q @ rest)
        beta = float(rest.norm())
        values, vectors = torch.linalg.eigh(T[: i + 1, : i + 1])
        found = left(values, vectors, beta)
        if i + 1 == len(start) or beta <= torch.finfo(start.dtype).eps * float(values.abs().max()):
            found = 0.0
        if found <= TOLERANCE or i + 1 == most:
            break
        if i + 1 == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        T[i, i + 1] = T[i + 1, i] = beta
        basis[i + 1] = rest / beta
    return values, Q, found


def _cosine(a: Tensor, b: Tensor) -> float:
    """a . b / (|a| |b|), NaN if one is 0."""
    return float((a / a.norm()) @ (b / b.norm()))
