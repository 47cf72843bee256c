"""Which of the points that only rotations tell apart: a frame that the point itself chooses.

    g -> D Q^T g,   A = B = Q diag(a) Q^T at the minimum,   D = diag(+-1)

A norm does not see rotations, so that a minimum fixes g of a general linear group up to an
orthogonal matrix on its left. The frame is that of the eigenvectors of the moments, in descending
order, with signs such that the largest weight of each unit's incoming row is positive; pairs of a
rotary embedding are turned until their largest column points along the first axis. So the same
weights come out from wherever one starts. A block in which eigenvalues are as good as equal has no
such frame and is not rotated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from metaopt.symmetry.balancing import logarithm, matrices
from metaopt.symmetry.elements import Element, Matrix, ScaledRotation
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.modules import touches_of
from metaopt.symmetry.touch import weights as moved

APART = 1e-6
"""Eigenvalues that differ by less than this share of the largest are as good as equal."""


def framed(
    elements: Mapping[Symmetry, Element],
    moments: Mapping[Symmetry, Tensor],
    weights: Mapping[str, Tensor],
) -> dict[Symmetry, Element]:
    """The same elements, followed by the rotations into the frame of each symmetry.

    Args:
        elements: g of each symmetry, which leads to a minimum.
        moments: A there, [blocks, k, k], of those whose blocks may be rotated.
        weights: w before anything moves, float64, by path.
    """
    touches = touches_of(elements.items())
    there = {path: moved(weight, touches.get(path, [])) for path, weight in weights.items()}
    found = dict(elements)
    for symmetry, element in elements.items():
        if symmetry.group is Group.ROTARY:
            u = _phases(symmetry, there)
            turn: Element = ScaledRotation(torch.zeros_like(u), u)
            found[symmetry] = ScaledRotation(logarithm(symmetry, element).to(u), u)
        elif symmetry in moments:
            q = _axes(symmetry, moments[symmetry], there)
            turn = Matrix(q, q.mT)
            g, inverse = (one.to(q) for one in matrices(symmetry, element))
            found[symmetry] = Matrix(q @ g, inverse @ q.mT)
        else:
            continue
        for path, steps in touches_of([(symmetry, turn)]).items():
            there[path] = moved(there[path], steps)
    return found


def _phases(symmetry: Symmetry, weights: Mapping[str, Tensor]) -> Tensor:
    """The angles that turn the largest column of each pair to the first axis, [blocks]."""
    x = columns(symmetry, symmetry.incoming, weights)
    column = x.square().sum(1).argmax(1)
    first, second = x[torch.arange(len(x), device=x.device), :, column].unbind(1)
    return -torch.atan2(second, first)


def _axes(symmetry: Symmetry, moments: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The eigenvectors of the moments as rows, with signs, [blocks, k, k]; 1 if unclear."""
    values, vectors = torch.linalg.eigh(moments)
    values, frame = values.flip(1), vectors.flip(2).mT
    # Directions without weights may point anywhere.
    held = values > APART * values[:, :1]
    apart = values[:, :-1] - values[:, 1:] > APART * values[:, :1]
    is_clear = (apart | ~held[:, 1:]).all(1)[:, None, None]
    eye = torch.eye(symmetry.size, dtype=frame.dtype, device=frame.device)
    q = torch.where(is_clear, frame, eye)
    rows = q @ columns(symmetry, symmetry.incoming, weights)
    largest = rows.gather(2, rows.abs().argmax(2, keepdim=True))
    return torch.where(is_clear & (largest < 0), -q, q)


def columns(symmetry: Symmetry, slots: Iterable[Slot], weights: Mapping[str, Tensor]) -> Tensor:
    """The entries of some slots side by side, [blocks, k, any]."""
    blocks, size = symmetry.blocks, symmetry.size
    return torch.cat([slot.columns(weights[slot.path], blocks, size) for slot in slots], 2)
