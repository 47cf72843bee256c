"""The least squared norm on the orbit of one general linear group, in closed form.

    min over g of  tr(g A g^T) + tr(g^-T B g^-1):   P A P = B,   P = A^-1 # B,   g = P^(1/2)
    A^-1 # B = A^(-1/2) (A^(1/2) B A^(1/2))^(1/2) A^(-1/2)

A and B are symmetric and not negative: with W_in = g W_in and W_out g^-1 for the weights, A is
W_in W_in^T and B is W_out^T W_out. P is unique, g up to an orthogonal matrix on its left.

Where both have rank r < k there is a minimum if the image of A and the kernel of B span the space:
in coordinates of these two, only the first r are left. Otherwise the norm has an infimum that no g
reaches (a LoRA adapter at its start has B = 0).

Reference: Bhatia, Positive Definite Matrices (2007), chapter 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

RANK = 1e-12
"""Singular values of roots below this share of the largest count as zero."""
FAR = 1e-3
"""Scales that differ by more than its inverse are left in the frame that keeps their precision."""


def power(a: Tensor, exponent: float) -> Tensor:
    """a^exponent of symmetric positive matrices [.., k, k]."""
    values, vectors = torch.linalg.eigh(a)
    tiny = torch.finfo(a.dtype).tiny
    return (vectors * values.clamp(min=tiny)[..., None, :] ** exponent) @ vectors.mT


def geometric_mean(a: Tensor, b: Tensor) -> Tensor:
    """A^-1 # B, the positive P with P A P = B.

    Args:
        a: A, positive definite, [.., k, k].
        b: B, positive definite, [.., k, k].
    """
    root, inverse = power(a, 0.5), power(a, -0.5)
    found = inverse @ power(root @ b @ root, 0.5) @ inverse
    return (found + found.mT) / 2


def least(
    a: Tensor, b: Tensor, share: float = 1.0, rank: float = RANK
) -> tuple[Tensor, Tensor, Tensor]:
    """g and its inverse at which ||a g^T||^2 + ||b g^-1||^2 is least, and where there is one.

    With A = a^T a and B = b^T b it is the minimum of the moments. They are never squared:

        b a^T = U S V^T,   g = S^(1/2) V^T a^-T,   P = g^T g = A^-1 # B

    Args:
        a: a root of A, [n, k, k].
        b: a root of B, [n, k, k].
        share: the exponent of P in g = P^(share / 2): 1 goes to the minimum.
        rank: singular values below this share of the largest count as 0.

    Returns:
        g and its inverse, [n, k, k], and for each of n whether it has a minimum; g = 1 if not.
    """
    size = a.shape[-1]
    both = torch.stack([ranks(a, rank), ranks(b, rank)])
    if bool((both == size).all()):
        return *_of_roots(a, b, share), both[0] == size
    eye = torch.eye(size, dtype=a.dtype, device=a.device)
    several = [
        _of_rank(*one, share, first) if first == second else None
        for one, (first, second) in zip(zip(a, b, strict=True), both.mT.tolist(), strict=True)
    ]
    found = [(eye, eye) if one is None else one for one in several]
    exists = torch.tensor([one is not None for one in several], device=a.device)
    g, inverse = (torch.stack(part) for part in zip(*found, strict=True))
    return g, inverse, exists


def _of_roots(a: Tensor, b: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """g and its inverse for regular roots, [.., k, k]."""
    _, sizes, right = torch.linalg.svd(b @ a.mT)
    root = sizes.sqrt()[..., None]
    g = root * torch.linalg.solve(a, right.mT).mT
    inverse = a.mT @ (right.mT / root.mT)
    _, scales, axes = torch.linalg.svd(g)
    if share == 1 and bool((scales[..., -1] < FAR * scales[..., 0]).any()):
        # Small directions keep their precision; it is a rotation away from P^(1/2).
        return g, inverse
    forth, back = (axes.mT @ (scales[..., None] ** (sign * share) * axes) for sign in (1, -1))
    return forth, back


def _of_rank(a: Tensor, b: Tensor, share: float, rank: int) -> tuple[Tensor, Tensor] | None:
    """g and its inverse for one pair of roots of one rank, [k, k]."""
    size = len(a)
    eye = torch.eye(size, dtype=a.dtype, device=a.device)
    if rank == 0:
        return eye, eye
    image = torch.linalg.svd(a)[2][:rank].mT
    kernel = torch.linalg.svd(b)[2][rank:].mT
    basis = torch.cat([image, kernel], 1)
    left, sizes, right = torch.linalg.svd(basis)
    if float(sizes[-1]) < RANK**0.5:
        return None
    first, second = (torch.linalg.qr(one @ image, mode="r").R for one in (a, b))
    inside = _of_roots(first, second, share)
    inner, outer = (torch.block_diag(one, eye[rank:, rank:]) for one in inside)
    # Back by the nearest orthogonal matrix, so that nothing moves where image and kernel are at a
    # right angle and P is 1.
    back = left @ right
    return back @ inner @ torch.linalg.inv(basis), basis @ outer @ back.mT


def ranks(root: Tensor, rank: float) -> Tensor:
    """The rank of the moments root^T root, of roots [.., k, k]; ``rank`` as of ``least``."""
    values = torch.linalg.svdvals(root)
    largest = values[..., :1].clamp(min=torch.finfo(root.dtype).tiny)
    return (values > rank * largest).sum(-1)
