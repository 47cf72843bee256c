"""Stacks of tensors with few rows, whose moments along the orbit are those of many.

    sum_r x_r x_r^T = sum_n g_n g_n^T   along the axes that matrices mix, for each other index

What a move along a symmetry does to the squared norm of a stack [n, *shape] depends on these
moments alone. A parameter that is only scaled has one row: the root of the sum of squares.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from metaopt.symmetry.groups import Group, Symmetry

MOST = 2**28
"""Entries of a stack, in float64 2 GiB."""


class Stack:
    """Adds up tensors that have the shape of a parameter, in float64.

    Args:
        path: the path of the parameter.
        like: a tensor of its shape.
        symmetries: those that may move it.
        count: how many tensors are going to be added.

    Raises:
        ValueError: if it needs more than 2^28 entries.
    """

    def __init__(self, path: str, like: Tensor, symmetries: Iterable[Symmetry], count: int) -> None:
        mixed = mixed_axes(path, symmetries)
        others = [axis for axis in range(like.dim()) if axis not in mixed]
        self._order = [*others, *mixed]
        self._shape = like.shape
        self._width = prod(like.shape[axis] for axis in mixed)
        entries = like.numel() * min(self._width, count)
        if entries > MOST:
            raise ValueError(
                f"{path!r} needs {entries:.1e} numbers for its noise or sharpness, more than "
                f"{MOST:.1e}: give fewer samples, or leave out a symmetry that moves it"
            )
        self._kept: list[Tensor] = []
        columns = like.numel() // self._width
        self._moments = (
            None
            if count <= self._width
            else torch.zeros(
                columns, self._width, self._width, dtype=torch.float64, device=like.device
            )
        )

    def add(self, tensors: Tensor) -> None:
        """Add tensors [n, *shape]."""
        wide = tensors.double()
        if self._moments is None:
            self._kept.append(wide)
            return
        ordered = wide.permute(0, *(axis + 1 for axis in self._order))
        columns = ordered.reshape(len(wide), -1, self._width).transpose(0, 1)
        self._moments += columns.mT @ columns

    def rows(self) -> Tensor:
        """The stack, [rows, *shape]."""
        if self._moments is None:
            return torch.cat(self._kept)
        if self._width == 1:
            roots = self._moments.sqrt()
        else:
            values, vectors = torch.linalg.eigh(self._moments)
            roots = values.clamp(min=0).sqrt()[..., None] * vectors.mT
        ordered = roots.transpose(0, 1).reshape(
            self._width, *(self._shape[axis] for axis in self._order)
        )
        back = [self._order.index(axis) + 1 for axis in range(len(self._shape))]
        return ordered.permute(0, *back).contiguous()


def mixed_axes(path: str, symmetries: Iterable[Symmetry]) -> list[int]:
    """The axes of a parameter along which some symmetry mixes entries by a matrix."""
    slots = [
        slot
        for symmetry in symmetries
        if symmetry.group is Group.LINEAR
        for slot in symmetry.slots
        if slot.path == path
    ]
    # The channels of a grouped convolution lie on its first two axes.
    axes = {axis for slot in slots for axis in ((0, 1) if slot.groups > 1 else (slot.axis,))}
    return sorted(axes)
