"""Functions of symmetric matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def logarithm(M: Tensor) -> Tensor:
    """log M = V log(L) V^T, M = V L V^T, of symmetric positive matrices [.., k, k].

    A constant: no gradient flows through it. That of the eigenvectors would be infinite where two
    eigenvalues are equal. NaN for a matrix that is not finite.
    """
    M = M.detach()
    finite = torch.isfinite(M).all(-1, keepdim=True).all(-2, keepdim=True)
    # A matrix that is not finite would raise an error for the whole batch: it has no logarithm.
    eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    values, vectors = torch.linalg.eigh(torch.where(finite, M, eye))
    values = values.clamp(min=torch.finfo(M.dtype).tiny)
    log = (vectors * values.log()[..., None, :]) @ vectors.mT
    return torch.where(finite, log, torch.nan)


def eigenvectors(P: Tensor) -> Tensor:
    """V of P = V L V^T, symmetric, [.., k, k]: in columns, those of the largest eigenvalues first.

    They are found in float64. I, in some order, where P is 0 or not finite.
    """
    size = P.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    unit = P.double() / size.double().clamp(min=torch.finfo(torch.double).tiny)
    # A matrix that is not finite would raise an error for the whole batch, and in float32 one of
    # few columns that are not 0 now and then does.
    finite = torch.isfinite(unit).all(-1, keepdim=True).all(-2, keepdim=True)
    eye = torch.eye(P.shape[-1], dtype=unit.dtype, device=P.device)
    return torch.linalg.eigh(torch.where(finite, unit, eye))[1].flip(-1).to(P)


def polar(rows: Tensor, iterations: int = 7) -> Tensor:
    """The matrix (R^T R)^(-1/2) that makes R orthonormal, roughly, by Newton and Schulz.

        Z <- (a I + b Y + c Y^2) Z,   Y <- (..) Y (..),   Y_0 = R^T R / tr(R^T R)

    Steps that blow small singular values up are followed by steps that converge, so that singular
    values of R above three thousandths of ||R||_F come out between 0.9 and 1.1. Nothing waits for
    the device, and zero stays zero.

    Args:
        rows: R^T R, [.., k, k].
        iterations: the number of steps, at least 1; the first ``BLOWN`` of them blow up.

    Reference: Jordan et al., Muon (2024), for the coefficients.
    """
    k = rows.shape[-1]
    size = rows.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)[..., None]
    size = size.clamp(min=torch.finfo(rows.dtype).tiny ** 0.5)
    # One batch axis: products of more take several operations each.
    Y = (rows / size).flatten(0, -3)
    Z = torch.eye(k, dtype=rows.dtype, device=rows.device)
    for i in range(iterations):
        a, b, c = BLOWING if i < BLOWN else CONVERGING
        # Without a I, which products are given as what they are added to.
        step = torch.baddbmm(Y, Y, Y, beta=b, alpha=c)
        Z = torch.add(step, Z, alpha=a) if i == 0 else torch.baddbmm(Z, step, Z, beta=a)
        if i + 1 < iterations:
            half = torch.baddbmm(Y, step, Y, beta=a)
            Y = torch.baddbmm(half, half, step, beta=a)
    return Z.view(rows.shape) * size.rsqrt()


BLOWN = 5
BLOWING = (3.4445, -4.7750, 2.0315)
CONVERGING = (1.875, -1.25, 0.375)
