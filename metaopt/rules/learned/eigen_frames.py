"""Frames in which the gradient's second moments are nearly independent: SOAP's.

    L <- d L + (1 - d) G G^T,    R <- d R + (1 - d) G^T G          running means, d = 0.95 a step
    G' = Q_L^T G Q_R,            Q_L, Q_R the eigenvectors of L and R

Everything that is kept of a matrix, but for its weights, is kept in its frame. At some steps the
frame is refreshed by one step of subspace iteration, Q <- qr(L Q), and what is kept is turned with
it: means by the rotation itself, squares by its squared entries, which keeps their total. Vectors
have no frame, nor do sides of more than ``largest``, nor those that are *given*: there a teleport
of linear pairs says the basis (``pair_moments``).

Frames are constants of the meta-gradient. Whether a step refreshes them is decided by counts,
which the host reads once in a step.

Reference: Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson and Kakade, SOAP: improving
and stabilizing Shampoo using Adam (2024), arXiv 2409.11321.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.rules.learned.spectral import eigenvectors
from metaopt.rules.learned.symmetric import add_gram, entries, unpacked

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


def _square(size: int) -> int:
    return size**2


NUMBERS: dict[str, Callable[[int], int]] = {"products": entries, "frames": _square}
"""What is kept of a side of so many rows, by name, and in how many numbers."""


def columns(name: str, out: int, rest: int, largest: int) -> int:
    """Numbers that are kept of the products or of the frames of a parameter [out, rest]."""
    return sum(map(NUMBERS[name], sides(out, rest, largest)))


Pair = tuple[Tensor | None, Tensor | None]
"""Of the two sides of a matrix, [B, out, out] and [B, rest, rest]; None without a frame."""
Given = tuple[bool, bool]
"""Whether the two sides of a matrix are given."""


def _cut(
    name: str, flat: Tensor, shapes: Sequence[tuple[int, int]], largest: int
) -> Iterator[tuple[int, Tensor | None]]:
    """The length of each side of each parameter, and what is kept of it, [B, any], if it is."""
    sizes = [size for out, rest in shapes for size in sides(out, rest, largest)]
    numbers = [NUMBERS[name](size) for size in sizes if size]
    parts = iter(flat[:, 0].split_with_sizes(numbers, dim=1))
    for size in sizes:
        yield size, next(parts) if size else None


def _paired(made: Sequence[Tensor | None]) -> list[Pair]:
    return list(zip(made[::2], made[1::2], strict=True))


def pairs(flat: Tensor, shapes: Sequence[tuple[int, int]], largest: int) -> list[Pair]:
    """Frames [B, 1, F'] -> the square matrices of each parameter."""
    each = _cut("frames", flat, shapes, largest)
    return _paired([None if part is None else part.view(-1, n, n) for n, part in each])


def packed(flat: Tensor, shapes: Sequence[tuple[int, int]], largest: int) -> list[Pair]:
    """Products [B, 1, F] -> those of each parameter, packed, [B, n (n + 1) / 2]."""
    return _paired([part for _, part in _cut("products", flat, shapes, largest)])


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
        products: L and R of all parameters, packed (``symmetric``), [B, 1, F].
        frames: Q_L and Q_R of all, [B, 1, F'].
        each: Q_L and Q_R of each.
        turns: U = Q_new^T Q_old where a frame was refreshed; None for a parameter whose was not.
    """

    products: Tensor
    frames: Tensor
    each: list[Pair]
    turns: list[Pair | None]


@torch.no_grad()
def after(
    grads: Weights,
    products: Tensor,
    frames: Tensor,
    counts: Sequence[int],
    largest: int,
    given: Sequence[Given] = (),
) -> Frames:
    """The frames that the next step is made in.

    Args:
        grads: G, each [B, out, rest].
        products: L and R of all parameters before it, packed, [B, 1, F].
        frames: Q_L and Q_R before it, [B, 1, F'].
        counts: gradients of each parameter, this one included.
        largest: the longest side that has a frame.
        given: the sides of each parameter that have none of their own; none by default.
    """
    shapes = [(G.shape[1], G.shape[2]) for G in grads]
    if any(count <= EVERY or not count % LOOKS for count in counts):
        products = products.clone()
        looked_at = _own(packed(products, shapes, largest), given)
        for G, pair, count in zip(grads, looked_at, counts, strict=True):
            if count <= EVERY or not count % LOOKS:
                _look(G, pair, DECAY if count <= EVERY else DECAY**LOOKS)
    due = [count == 1 or count in EARLY or not count % EVERY for count in counts]
    if not any(due):
        none: list[Pair | None] = [None] * len(shapes)
        return Frames(products, frames, _own(pairs(frames, shapes, largest), given), none)
    frames = frames.clone()
    new = _own(pairs(frames, shapes, largest), given)
    kept = _own(packed(products, shapes, largest), given)
    pieces = zip(kept, new, counts, due, strict=True)
    turns = [
        _refreshed(old, frame, count == 1) if is_due else None
        for old, frame, count, is_due in pieces
    ]
    return Frames(products, frames, new, turns)


def _own(each: list[Pair], given: Sequence[Given]) -> list[Pair]:
    """Those of sides that are not given."""
    if not given:
        return each
    return [
        (None if is_given[0] else left, None if is_given[1] else right)
        for (left, right), is_given in zip(each, given, strict=True)
    ]


@torch.no_grad()
def left(
    frames: Tensor, shapes: Sequence[tuple[int, int]], largest: int, given: Sequence[Given]
) -> tuple[Tensor, list[Pair | None]]:
    """Frames with I for the sides that are given, and what turns what is kept out of the old ones.

    From I a run may go on that knows no pairs.
    """
    frames = frames.clone()
    turns: list[Pair | None] = []
    for pair, flags in zip(pairs(frames, shapes, largest), given, strict=True):
        own: list[Tensor | None] = [None, None]
        for side, (Q, is_given) in enumerate(zip(pair, flags, strict=True)):
            if Q is not None and is_given:
                own[side] = Q.clone()
                Q.copy_(torch.eye(Q.shape[1], dtype=Q.dtype, device=Q.device))
        turns.append((own[0], own[1]))
    return frames, turns


def _look(G: Tensor, pair: Pair, decay: float) -> None:
    """L <- d L + (1 - d) G G^T and R <- d R + (1 - d) G^T G, in place."""
    for X, L in zip((G, G.mT), pair, strict=True):
        if L is not None:
            add_gram(L.mul_(decay), X, 1 - decay)


def _refreshed(products: Pair, frame: Pair, is_first: bool) -> Pair | None:
    """U = Q_new^T Q_old of both sides, after Q <- qr(L Q) in place; None for a first frame."""
    turn: list[Tensor | None] = []
    for flat, Q in zip(products, frame, strict=True):
        if flat is None or Q is None:
            turn.append(None)
            continue
        L = unpacked(flat, Q.shape[1])
        new = eigenvectors(L) if is_first else torch.linalg.qr(torch.bmm(L, Q))[0]
        # The first frame is nobody's successor: nothing has been kept yet.
        turn.append(None if is_first else torch.bmm(new.mT, Q))
        Q.copy_(new)
    return None if is_first else (turn[0], turn[1])
