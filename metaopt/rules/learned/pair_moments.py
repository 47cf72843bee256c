"""Second moments of gradients on linear pairs, which follow rotations and multiples of the pairs.

    V_r <- d V_r + (1 - d) g_r g_r^T,     v = diag V_r         for each row g_r [k] of gradients
    V_r <- R^T V_r R                                           when gradients move, g_r <- R^T g_r

A row is a vector along the k numbers of a pair (``symmetry.pairs``). Squares of its entries alone
would follow no rotation: those after it depend on products of different entries, which V keeps. So
a rule that divides by the root of v may be moved to any basis, and its next step is that of a run
that has been there all along. V takes k times the memory of the pairs' parameters; of pairs that
are wider than ``WIDEST`` none is kept, and they stay where they are.

The other side of a parameter may have a frame of its own (``eigen_frames``). When that one turns, V
turns as squares do there, by the squares of its entries. An axis along which a pair lies has none,
not even beside it.

How many gradients V has seen is kept with it. Where pairs come, change or come back in the middle
of a run, V is behind: it then begins as a diagonal, of the squares that are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.rules.base import State
from metaopt.rules.learned import eigen_frames
from metaopt.symmetry.pairs import MAKES, Face, LinearPairs
from metaopt.teleport.base import MovesPairs

WIDEST = 32
"""k of the widest pairs that move."""
_PREFIX = "second"
SEEN = f"{_PREFIX}.seen"
"""The name of the number of gradients, [B, 1, 1]."""


def is_kept(name: str) -> bool:
    """Whether a tensor of a state holds V, or how many gradients it has seen."""
    return name.startswith(_PREFIX)


def within(state: State) -> State:
    """V and how many gradients it has seen, of a state; nothing where no pairs were known."""
    return {name: x for name, x in state.items() if is_kept(name)}


def _faces(pairs: LinearPairs) -> Iterator[tuple[str, int, int, Face]]:
    """The name of V, the number of the width, k, and the face."""
    for i, width in enumerate(pairs.widths):
        if width.size <= WIDEST:
            for j, face in enumerate(width.faces):
                yield f"{_PREFIX}{i}.{j}", i, width.size, face


def given(pairs: LinearPairs, count: int) -> list[eigen_frames.Given]:
    """The sides of each of ``count`` parameters along which pairs lie that move."""
    found = [(False, False)] * count
    for _, _, _, face in _faces(pairs):
        for i in face.tensors:
            first, rest = found[i]
            found[i] = (first or face.is_first, rest or not face.is_first)
    return found


def initial(pairs: LinearPairs, weights: Weights) -> State:
    """V = 0, [B, pairs of a face, rows, k, k] for each face, and that it has seen nothing."""
    kept: State = {SEEN: weights[0].new_zeros(weights[0].shape[0], 1, 1)}
    for name, _, size, face in _faces(pairs):
        rows = face.rows(weights, size)
        kept[name] = rows.new_zeros(*rows.shape, size)
    return kept


def begun(pairs: LinearPairs, state: State, squares: Sequence[Tensor], seen: int) -> State:
    """diag(v) in the place of V, of squares v of all entries, each [B, out, rest]."""
    new: State = {SEEN: torch.full_like(state[SEEN], seen)}
    for name, _, size, face in _faces(pairs):
        new[name] = torch.diag_embed(face.rows(squares, size))
    return new


def after(
    pairs: LinearPairs, state: State, grads: Sequence[Tensor], decays: Sequence[float]
) -> State:
    """V after gradients, each [B, out, rest], in the frames of the other sides.

    Args:
        pairs: the pairs.
        state: V before it.
        grads: the gradients.
        decays: d of each parameter; the parameters of one face have one.
    """
    new: State = {SEEN: state[SEEN] + 1}
    for name, _, size, face in _faces(pairs):
        rows = face.rows(grads, size)
        outer = rows[..., :, None] * rows[..., None, :]
        new[name] = torch.lerp(outer, state[name], decays[face.tensors[0]])
    return new


def refreshed(
    pairs: LinearPairs, state: State, turns: Sequence[eigen_frames.Pair | None], like: Weights
) -> State:
    """V after the frames of other sides have turned; ``like`` fixes the shapes."""
    new: State = {SEEN: state[SEEN]}
    for name, _, size, face in _faces(pairs):
        V = state[name]
        if all(turns[i] is None for i in face.tensors):
            new[name] = V
            continue
        # Its columns, one by one, are laid out as the parameters are.
        columns = V.movedim(-1, 1).flatten(0, 1)
        shapes = [(len(columns), *w.shape[1:]) for w in like]
        parts = {i: V.new_zeros(shapes[i]) for i in face.tensors}
        blank = [parts.get(i, V.new_zeros(0)) for i in range(len(like))]
        for i, x in zip(face.tensors, face.placed(columns, blank, size), strict=True):
            turn = turns[i]
            if turn is not None:
                each = x.unflatten(0, (-1, size))
                x = eigen_frames.turned(eigen_frames.squared(turn), each).flatten(0, 1)
            blank[i] = x
        rows = face.rows(blank, size)
        new[name] = rows.unflatten(0, (-1, size)).movedim(1, -1)
    return new


def moved(move: MovesPairs, state: State) -> State:
    """V after pairs have moved."""
    new: State = {}
    for name, i, _, face in _faces(move.pairs):
        element = move.elements[i]
        if element is None:
            new[name] = state[name]
            continue
        g, g_inv = element
        R = (g_inv if face.side == MAKES else g.mT).index_select(1, face.pairs)[:, :, None]
        new[name] = R.mT @ state[name] @ R
    return new


def written(pairs: LinearPairs, state: State, squares: list[Tensor]) -> list[Tensor]:
    """Squares of all entries, each [B, out, rest], with diag V in the place of those of pairs."""
    found = list(squares)
    for name, _, size, face in _faces(pairs):
        own = state[name].diagonal(dim1=-2, dim2=-1)
        for i, x in zip(face.tensors, face.placed(own, found, size), strict=True):
            found[i] = x
    return found
