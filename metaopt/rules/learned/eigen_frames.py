"""Frames in which the gradient's second moments are nearly independent: SOAP's.

    L <- d L + (1 - d) G G^T,    R <- d R + (1 - d) G^T G          running means, d = 0.95 a step
    G' = Q_L^T G Q_R,            Q_L, Q_R the eigenvectors of L and R

Everything that is kept of a matrix, but for its weights, is kept in its frame. At some steps the
frame is refreshed by one step of subspace iteration, Q <- qr(L Q), and what is kept is turned with
it: means by the rotation itself, squares by its squared entries, which keeps their total. Vectors
have no frame, nor do sides of more than ``largest``.

Frames are constants of the meta-gradient. Whether a step refreshes them is decided by counts,
which the host reads once in a step.

Reference: Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson and Kakade, SOAP: improving
and stabilizing Shampoo using Adam (2024), arXiv 2409.11321.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.network import Weights

DECAY = 0.95
"""Of the running means of G G^T and G^T G, a step."""
EARLY = frozenset({2, 3, 4, 6, 8})
EVERY = 10
"""Frames are refreshed after these counts of gradients, and at each multiple of this one."""
LOOKS = 2
"""After the first ``EVERY`` steps every other gradient is looked at, which costs half as much."""


def sides(out: int, rest: int, largest: int) -> tuple[int, int]:
    """The sizes of the sides of [out, rest] that have a frame; 0 for one without.

    A single row or column has none, as in SOAP.
    """
    if min(out, rest) == 1:
        return 0, 0
    return out if out <= largest else 0, rest if rest <= largest else 0


def columns(out: int, rest: int, largest: int) -> int:
    """Numbers that are kept of the products of a parameter [out, rest], and again of its frame."""
    left, right = sides(out, rest, largest)
    return left**2 + right**2


Pair = tuple[Tensor | None, Tensor | None]
"""Of the two sides of a matrix, [B, out, out] and [B, rest, rest]; None without a frame."""


def pairs(flat: Tensor, shapes: Sequence[tuple[int, int]], largest: int) -> list[Pair]:
    """[B, 1, F] -> the square matrices of each parameter."""
    sizes = [size for out, rest in shapes for size in sides(out, rest, largest)]
    parts = flat[:, 0].split([size**2 for size in sizes], dim=1)
    made = [
        part.view(-1, size, size) if size else None for part, size in zip(parts, sizes, strict=True)
    ]
    return list(zip(made[::2], made[1::2], strict=True))


def into(frame: Pair, X: Tensor) -> Tensor:
    """Q_L^T X Q_R of X [B, out, rest]."""
    left, right = frame
    if left is not None:
        X = torch.bmm(left.mT, X)
    return X if right is None else torch.bmm(X, right)


def out_of(frame: Pair, X: Tensor) -> Tensor:
    """Q_L X Q_R^T of X [B, out, rest], the inverse of ``into``."""
    left, right = frame
    if left is not None:
        X = torch.bmm(left, X)
    return X if right is None else torch.bmm(X, right.mT)


def turned(turn: Pair, X: Tensor) -> Tensor:
    """U_L X U_R^T of X [B, any, out, rest], U the rotations of the two sides; None where none."""
    left, right = turn
    if left is not None:
        X = left[:, None] @ X
    return X if right is None else X @ right.mT[:, None]


def squared(turn: Pair) -> Pair:
    """The entries of both rotations, squared: they turn squares, and keep their sum."""
    left, right = turn
    return None if left is None else left.square(), None if right is None else right.square()


@dataclass(frozen=True)
class Frames:
    """The frames after a gradient.

    Attributes:
        products: L and R of all parameters, [B, 1, F].
        frames: Q_L and Q_R of all, [B, 1, F].
        each: Q_L and Q_R of each.
        turns: U = Q_new^T Q_old where a frame was refreshed; None for a parameter whose was not.
    """

    products: Tensor
    frames: Tensor
    each: list[Pair]
    turns: list[Pair | None]


@torch.no_grad()
def after(
    grads: Weights, products: Tensor, frames: Tensor, counts: Sequence[int], largest: int
) -> Frames:
    """The frames that the next step is made in.

    Args:
        grads: G, each [B, out, rest].
        products: L and R of all parameters before it, [B, 1, F].
        frames: Q_L and Q_R before it.
        counts: gradients of each parameter, this one included.
        largest: the longest side that has a frame.
    """
    shapes = [(G.shape[1], G.shape[2]) for G in grads]
    due = [count == 1 or count in EARLY or not count % EVERY for count in counts]
    looks = [count <= EVERY or not count % LOOKS for count in counts]
    new_products = torch.empty_like(products) if any(looks) else products
    new_frames = torch.empty_like(frames) if any(due) else frames
    before, frames_before = (pairs(flat, shapes, largest) for flat in (products, frames))
    each = pairs(new_frames, shapes, largest) if any(due) else frames_before
    after_it = pairs(new_products, shapes, largest) if any(looks) else before
    pieces = zip(before, after_it, frames_before, each, strict=True)
    turns: list[Pair | None] = []
    for G, count, is_due, has_looked, (old, new, old_frame, frame) in zip(
        grads, counts, due, looks, pieces, strict=True
    ):
        decay = DECAY if count <= EVERY else DECAY**LOOKS
        turn: list[Tensor | None] = []
        for X, L, L_new, Q, Q_new in zip((G, G.mT), old, new, old_frame, frame, strict=True):
            if L is None or L_new is None or Q is None or Q_new is None:
                turn.append(None)
                continue
            if has_looked:
                torch.baddbmm(L, X, X.mT, beta=decay, alpha=1 - decay, out=L_new)
            elif L_new is not L:
                L_new.copy_(L)
            if is_due:
                Q_new.copy_(_eigenvectors(L_new) if count == 1 else torch.linalg.qr(L_new @ Q)[0])
                turn.append(Q_new.mT @ Q)
            elif new_frames is not frames:
                Q_new.copy_(Q)
        # The first frame is nobody's successor: nothing has been kept yet.
        turns.append((turn[0], turn[1]) if is_due and count > 1 else None)
    return Frames(new_products, new_frames, each, turns)


def _eigenvectors(P: Tensor) -> Tensor:
    # A matrix that is not finite would raise an error for the whole batch, and in float32 one of
    # few columns that are not 0 now and then does.
    size = P.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    unit = P.double() / size.double().clamp(min=torch.finfo(torch.double).tiny)
    finite = torch.isfinite(unit).all(-1, keepdim=True).all(-2, keepdim=True)
    eye = torch.eye(P.shape[-1], dtype=unit.dtype, device=P.device)
    # The largest eigenvalue first: subspace iteration turns the first columns toward it.
    return torch.linalg.eigh(torch.where(finite, unit, eye))[1].flip(-1).to(P)
