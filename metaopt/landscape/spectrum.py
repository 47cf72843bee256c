"""Trace, largest eigenvalue and damped Newton direction of a symmetric matrix M given by products.

    trace       exact, or Hutchinson's mean of z^T M z over signs z
    eigenvalue  the largest, by Lanczos' method
    direction   d = -(|M| + lambda)^-1 grad L,  lambda a share of the largest |eigenvalue|

|M| has the moduli of M's eigenvalues; for a Gauss-Newton matrix it is M itself. A matrix of up to
``EXACT`` rows is written out and decomposed. A larger one is projected on the Krylov space of the
gradient, in which the direction of a Gauss-Newton matrix is that of conjugate gradients.

References:
    Hutchinson (1989) for the trace; Golub and Van Loan, Matrix Computations (2013), chapter 10, for
    Lanczos' method; Dauphin et al., arXiv 1406.2572, for the moduli.
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
and the residual at which a damped system is solved, relative to its right side. For eigenvalues of
both signs the residual is that of M in place of |M|, and shows only that the basis suffices."""
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
    """

    trace: float
    trace_error: float
    eigenvalue: float
    cosine: float


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
        return Spectrum(math.nan, math.nan, math.nan, math.nan)


def is_small(size: int) -> bool:
    """Whether a matrix of so many rows is written out."""
    return size <= EXACT


def _projected(
    product: Product,
    gradient: Tensor,
    damping: float,
    generator: Callable[[str], np.random.Generator],
) -> Spectrum:
    trace, error = hutchinson(product, gradient, generator("Hutchinson"))
    start = torch.from_numpy(generator("Lanczos").standard_normal(len(gradient))).to(gradient)
    largest, modulus = extremes(product, start)
    direction = solved(product, gradient, damping * modulus)
    return Spectrum(trace, error, largest, _cosine(gradient, direction))


def _dense(product: Product, gradient: Tensor, damping: float) -> Spectrum:
    M = product(torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device))
    values, vectors = torch.linalg.eigh((M + M.mT) / 2)
    moduli = values.abs()
    direction = vectors @ ((vectors.mT @ gradient) / (moduli + damping * moduli.max()))
    return Spectrum(float(M.trace()), 0.0, float(values[-1]), _cosine(gradient, direction))


def hutchinson(
    product: Product, like: Tensor, numbers: np.random.Generator, probes: int = PROBES
) -> tuple[float, float]:
    """tr M = E z^T M z for random signs z: the mean over some, and its standard error.

    Args:
        product: V [m, P] -> M V.
        like: a tensor [P].
        numbers: where the signs come from.
        probes: how many vectors, at least 2.
    """
    signs = numbers.integers(0, 2, (probes, len(like)), dtype=np.int8)
    z = 2 * torch.from_numpy(signs).to(like) - 1
    found = (z * product(z)).sum(1)
    return float(found.mean()), float(found.std() / math.sqrt(probes))


def extremes(product: Product, start: Tensor) -> tuple[float, float]:
    """The largest eigenvalue of M, and the largest modulus of one.

    Args:
        product: V [m, P] -> M V.
        start: [P], where the Krylov space starts.
    """

    def both_found(values: Tensor, vectors: Tensor, beta: float) -> float:
        ends = torch.stack([values.argmax(), values.abs().argmax()])
        return float(beta * vectors[-1, ends].abs().max() / values.abs().max())

    values, _, _ = _krylov(product, start, both_found, "the largest eigenvalue")
    return float(values[-1]), float(values.abs().max())


def solved(product: Product, right: Tensor, shift: float) -> Tensor:
    """(|M| + shift)^-1 b, [P], in the Krylov space of b.

    Args:
        product: V [m, P] -> M V.
        right: b, [P].
        shift: lambda, above 0.
    """
    if not shift > 0 or not right.any():
        return torch.zeros_like(right)

    def coefficients(values: Tensor, vectors: Tensor) -> Tensor:
        return vectors @ (vectors[0] / (values.abs() + shift))

    def residual(values: Tensor, vectors: Tensor, beta: float) -> float:
        return beta * float(coefficients(values, vectors)[-1].abs())

    values, vectors, basis = _krylov(product, right, residual, "the damped direction")
    return right.norm() * (basis.mT @ coefficients(values, vectors))


def _krylov(
    product: Product,
    start: Tensor,
    residual: Callable[[Tensor, Tensor, float], float],
    wanted: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lanczos' method: M on the space of start, M start, M^2 start, ..

    Eigenvalues [s] and eigenvectors (columns) [s, s] of T = Q M Q^T, and Q [s, P], orthonormal
    rows of which the first is the start's direction.

    Args:
        product: V [m, P] -> M V.
        start: [P], the first vector of the basis once it has norm 1.
        residual: what must be at most ``TOLERANCE``, of the eigenvalues and eigenvectors of T and
            the norm of what the last step added.
        wanted: what the basis is for, to warn if it is not found.
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
        left = residual(values, vectors, beta)
        is_whole = beta <= torch.finfo(start.dtype).eps * float(values.abs().max())
        if left <= TOLERANCE or is_whole or i + 1 == len(start):
            break
        if i + 1 == most:
            warnings.warn(
                f"{wanted} has a relative residual of {left:.1e} after {most} products, wanted "
                f"{TOLERANCE:.0e}",
                stacklevel=2,
            )
            break
        if i + 1 == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        T[i, i + 1] = T[i + 1, i] = beta
        basis[i + 1] = rest / beta
    return values, vectors, Q


def _cosine(a: Tensor, b: Tensor) -> float:
    """a . b / (|a| |b|), NaN if one is 0."""
    return float((a / a.norm()) @ (b / b.norm()))
