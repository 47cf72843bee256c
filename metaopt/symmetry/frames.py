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
from itertools import chain

import torch
from torch import Tensor

from metaopt.symmetry.elements import Element, Matrix, ScaledRotation
from metaopt.symmetry.groups import Group, Slot, Symmetry

APART = 1e-6
"""Eigenvalues that differ by less than this share of the largest are as good as equal."""


def rotation(symmetry: Symmetry, moments: Tensor | None, weights: Mapping[str, Tensor]) -> Element:
    """The rotation into the frame of a symmetry.

    Args:
        symmetry: general linear, or scale and rotation.
        moments: A at the minimum, [blocks, k, k], for a general linear group.
        weights: w at the minimum, by path, in the frames of the symmetries before.
    """
    if symmetry.group is Group.ROTARY:
        x = _columns(symmetry, symmetry.slots[:1], weights)
        column = x.square().sum(1).argmax(1)
        first, second = x[torch.arange(len(x)), :, column].unbind(1)
        u = -torch.atan2(second, first)
        return ScaledRotation(torch.zeros_like(u), u)
    assert moments is not None
    values, vectors = torch.linalg.eigh(moments)
    values, frame = values.flip(1), vectors.flip(2)
    # Directions without weights may point anywhere.
    held = values > APART * values[:, :1]
    gaps = values[:, :-1] - values[:, 1:]
    is_clear = ((gaps > APART * values[:, :1]) | ~held[:, 1:]).all(1)
    eye = torch.eye(symmetry.size, dtype=frame.dtype, device=frame.device)
    q = torch.where(is_clear[:, None, None], frame.mT, eye)
    rows = q @ _columns(symmetry, symmetry.incoming, weights)
    other = q @ _columns(symmetry, symmetry.outgoing, weights)
    rows = torch.where((rows == 0).all(2, keepdim=True), other[:, :, :1].expand_as(rows), rows)
    largest = rows.abs().argmax(2, keepdim=True)
    signs = torch.where(rows.gather(2, largest) < 0, -1.0, 1.0).to(q)
    q = torch.where(is_clear[:, None, None], signs * q, q)
    return Matrix(q, q.mT)


def _columns(symmetry: Symmetry, slots: Iterable[Slot], weights: Mapping[str, Tensor]) -> Tensor:
    """The entries of some slots side by side, [blocks, k, any]."""
    entries = (
        slot.entries(weights[slot.path], symmetry.blocks, symmetry.size)
        for slot in chain(slots)
        if slot.path in weights
    )
    return torch.cat([x.permute(1, 2, 0, 3).flatten(2) for x in entries], 2)
