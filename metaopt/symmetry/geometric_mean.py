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
"""Eigenvalues below this share of the largest count as zero."""


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


def least(a: Tensor, b: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """g and its inverse at which tr(g A g^T) + tr(g^-T B g^-1) is least, and where there is one.

    Args:
        a: A, not negative, [n, k, k].
        b: B, not negative, [n, k, k].
        share: the exponent of P in g = P^(share / 2): 1 goes to the minimum.

    Returns:
        g and its inverse, [n, k, k], and for each of n whether it has a minimum; g = 1 if not.
    """
    size = a.shape[-1]
    both = torch.stack([ranks(a), ranks(b)])
    if bool((both == size).all()):
        p = geometric_mean(a, b)
        return power(p, share / 2), power(p, -share / 2), both[0] == size
    eye = torch.eye(size, dtype=a.dtype, device=a.device)
    several = [
        _of_rank(*one, share) if first == second else None
        for one, (first, second) in zip(zip(a, b, strict=True), both.mT.tolist(), strict=True)
    ]
    found = [(eye, eye) if one is None else one for one in several]
    exists = torch.tensor([one is not None for one in several], device=a.device)
    g, inverse = (torch.stack(part) for part in zip(*found, strict=True))
    return g, inverse, exists


def _of_rank(a: Tensor, b: Tensor, share: float) -> tuple[Tensor, Tensor] | None:
    """g and its inverse for one A and B of one rank."""
    size, rank = len(a), int(ranks(a))
    eye = torch.eye(size, dtype=a.dtype, device=a.device)
    if rank == 0:
        return eye, eye
    image = torch.linalg.eigh(a).eigenvectors[:, size - rank :]
    kernel = torch.linalg.eigh(b).eigenvectors[:, : size - rank]
    basis = torch.cat([image, kernel], 1)
    left, sizes, right = torch.linalg.svd(basis)
    if float(sizes[-1]) < RANK**0.5:
        return None
    p = geometric_mean(image.mT @ a @ image, image.mT @ b @ image)
    inner, outer = (
        torch.block_diag(power(p, sign * share / 2), eye[rank:, rank:]) for sign in (1, -1)
    )
    # Back by the nearest orthogonal matrix, so that nothing moves where image and kernel are at a
    # right angle and P is 1.
    back = left @ right
    return back @ inner @ torch.linalg.inv(basis), basis @ outer @ back.mT


def ranks(a: Tensor) -> Tensor:
    """The rank of symmetric matrices that are not negative, [.., k, k]."""
    values = torch.linalg.eigvalsh(a)
    largest = values[..., -1:].clamp(min=torch.finfo(a.dtype).tiny)
    return (values > RANK * largest).sum(-1)
