"""Running means of products G G^T, which are symmetric, in half the memory.

    S [n + 1, n / 2]  (n even),   S [n, (n + 1) / 2]  (n odd):   n (n + 1) / 2 numbers

Below its diagonal S holds the columns of A's left half, from A's diagonal down; above it, shifted
by one row or one column, the upper triangle of A's last block, [n // 2, n // 2]: every entry on one
side of A's diagonal once, and none twice. Both parts are rectangles with a triangle cut off, so
that products of matrices write them, with three quarters of the work that all of A takes.

Reference: Gustavson, Waśniewski, Dongarra and Langou, Rectangular full packed format for Cholesky's
algorithm (2010), ACM Transactions on Mathematical Software 37(2), Article 18.
"""

from __future__ import annotations

import torch
from torch import Tensor


def entries(size: int) -> int:
    """Of a packed matrix [size, size]."""
    return size * (size + 1) // 2


def _parts(flat: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The rectangles in which the lower and the upper part of S lie: they overlap in the other's.

    They are [B, size, (size + 1) // 2] and [B, size // 2, size // 2].
    """
    half = size // 2
    columns = size - half
    S = flat.view(-1, entries(size) // columns, columns)
    if size % 2:
        return S, S[:, :half, 1:]
    return S[:, 1:], S[:, :half]


def add_gram(flat: Tensor, X: Tensor, share: float) -> None:
    """A <- A + share X X^T, in place.

    Args:
        flat: A packed, [B, n (n + 1) / 2].
        X: [B, n, any].
        share: the factor.
    """
    size = X.shape[1]
    lower, upper = _parts(flat, size)
    left, last = X[:, : lower.shape[2]], X[:, lower.shape[2] :]
    lower.add_(torch.bmm(X, left.mT).tril_(), alpha=share)
    upper.add_(torch.bmm(last, last.mT).triu_(), alpha=share)


def unpacked(flat: Tensor, size: int) -> Tensor:
    """[B, n (n + 1) / 2] -> A, [B, n, n]."""
    lower, upper = _parts(flat, size)
    columns = lower.shape[2]
    A = flat.new_zeros(flat.shape[0], size, size)
    torch.tril(lower, out=A[:, :, :columns])
    A[:, columns:, columns:] = upper.triu().mT
    return A + A.tril(-1).mT
