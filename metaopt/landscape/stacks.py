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

from metaopt.landscape.gradients import Full, Gradients
from metaopt.symmetry.groups import Group, Symmetry

MOST = 2**28
"""Entries of a stack, in float64 2 GiB."""


class Stack:
    """Adds up gradients by one parameter, in float64.

    Args:
        path: the path of the parameter.
        like: a tensor of its shape.
        symmetries: those that may move it.
        count: how many gradients are going to be added.

    Raises:
        ValueError: if it needs more than 2^28 entries.
    """

    def __init__(self, path: str, like: Tensor, symmetries: Iterable[Symmetry], count: int) -> None:
        self._shape, self._count = like.shape, count
        self._mixed = mixed_axes(path, symmetries)
        self._width = prod(like.shape[axis] for axis in self._mixed)
        entries = like.numel() * min(self._width, count)
        if entries > MOST:
            raise ValueError(
                f"{path!r} needs {entries:.1e} numbers for its noise or sharpness, more than "
                f"{MOST:.1e}: give fewer samples, or leave out a symmetry that moves it"
            )
        self._kept: list[Tensor] = []
        self._moments = torch.zeros((), dtype=torch.float64, device=like.device)
        self._sum = torch.zeros(like.shape, dtype=torch.float64, device=like.device)

    def add(self, gradients: Gradients) -> None:
        """Add the gradients of some samples."""
        self._sum += gradients.sum()
        if self._count <= self._width:
            self._kept.append(gradients.full())
        else:
            self._moments = self._moments + gradients.moments(self._mixed)

    def rows(self) -> Tensor:
        """The stack, [rows, *shape]."""
        return torch.cat(self._kept) if self._kept else self._roots(self._moments)

    def centred(self) -> Tensor:
        """The stack of the gradients minus their mean, [rows, *shape]."""
        mean = self._sum / self._count
        if self._kept:
            return torch.cat(self._kept) - mean
        of_mean = Full(mean[None]).moments(self._mixed)
        return self._roots(self._moments - self._count * of_mean)

    def _roots(self, moments: Tensor) -> Tensor:
        """Rows with these moments [c, m, m], without directions in which they are but rounding."""
        # Equal gradients have no noise, but their moments differ by rounding.
        eps = torch.finfo(moments.dtype).eps
        least = 64 * eps * self._moments.diagonal(dim1=1, dim2=2).amax(1)[:, None]
        if self._width == 1:
            values = moments[..., 0]
            roots = torch.where(values > least, values, 0).sqrt()[..., None]
        else:
            values, vectors = torch.linalg.eigh(moments)
            roots = torch.where(values > least, values, 0).sqrt()[..., None] * vectors.mT
        others = [axis for axis in range(len(self._shape)) if axis not in self._mixed]
        order = [*others, *self._mixed]
        ordered = roots.transpose(0, 1).reshape(-1, *(self._shape[axis] for axis in order))
        back = [order.index(axis) + 1 for axis in range(len(order))]
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
