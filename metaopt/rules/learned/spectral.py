"""Functions of symmetric matrices that meta-gradients flow through, degenerate or not.

    f(M) = V f(L) V^T,   M = V L V^T

    d f(M) = V (F * (V^T dM V)) V^T,   F_ij = (f(l_i) - f(l_j)) / (l_i - l_j),   F_ii = f'(l_i)

The derivative of the eigenvectors alone is infinite where two eigenvalues are equal, as those of
A A^T = I are; that of f(M) is not.

Reference: Higham, Functions of Matrices (2008), theorem 3.11 (Daleckii and Krein).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CLOSE = 1e-3
"""Eigenvalues count as equal within this share of the larger: the difference is then rounding."""


class _Logarithm(torch.autograd.Function):
    """log M of symmetric positive M [.., k, k]."""

    @staticmethod
    def forward(ctx: Any, M: Tensor) -> Tensor:
        finite = torch.isfinite(M).all(-1, keepdim=True).all(-2, keepdim=True)
        # A matrix that is not finite would raise an error for the whole batch: it has no logarithm.
        eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
        values, vectors = torch.linalg.eigh(torch.where(finite, M, eye))
        values = values.clamp(min=torch.finfo(M.dtype).tiny)
        ctx.save_for_backward(values, vectors)
        log = (vectors * values.log()[..., None, :]) @ vectors.mT
        return torch.where(finite, log, torch.nan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        values, vectors = ctx.saved_tensors
        rows, columns = values[..., :, None], values[..., None, :]
        apart = rows - columns
        close = apart.abs() <= CLOSE * torch.maximum(rows, columns)
        slope = (rows.log() - columns.log()) / torch.where(close, 1.0, apart)
        slope = torch.where(close, 2 / (rows + columns), slope)
        inner = vectors.mT @ grads[0] @ vectors
        return (vectors @ (slope * inner) @ vectors.mT,)


def logarithm(M: Tensor) -> Tensor:
    """log M of symmetric positive matrices [.., k, k]; NaN for one that is not finite."""
    return _Logarithm.apply(M)


def polar(rows: Tensor, iterations: int = 7) -> Tensor:
    """The matrix (R^T R)^(-1/2) that makes R orthonormal, roughly, by Newton and Schulz.

        Z <- (a I + b Y + c Y^2) Z,   Y <- (..) Y (..),   Y_0 = R^T R / tr(R^T R)

    Steps that blow small singular values up are followed by steps that converge, so that singular
    values of R above three thousandths of ||R||_F come out between 0.9 and 1.1. Nothing waits for
    the device, and zero stays zero.

    Args:
        rows: R^T R, [.., k, k].
        iterations: the number of steps; the first ``BLOWN`` of them blow up.

    Reference: Jordan et al., Muon (2024), for the coefficients.
    """
    eye = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    trace = rows.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    size = trace.clamp(min=torch.finfo(rows.dtype).tiny ** 0.5)
    Y, Z = rows / size, eye.expand_as(rows)
    for i in range(iterations):
        a, b, c = BLOWING if i < BLOWN else CONVERGING
        step = a * eye + b * Y + c * (Y @ Y)
        Y, Z = step @ Y @ step, step @ Z
    return Z * size.rsqrt()


BLOWN = 5
BLOWING = (3.4445, -4.7750, 2.0315)
CONVERGING = (1.875, -1.25, 0.375)
