"""Gradients of single samples by one parameter: as they are, or as outer products.

Both give what is asked of them, in float64: their sum, their second moments, and tensors with the
same moments along one axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

from torch import Tensor

from metaopt.symmetry.groups import Slot

ENTRIES = 2**24
"""Numbers that a sum over samples holds at a time."""


class Gradients(Protocol):
    """The gradients of n samples by one parameter."""

    def full(self) -> Tensor:
        """G, [n, *shape]."""

    def sum(self) -> Tensor:
        """sum_n G_n, [*shape]."""

    def along(self, slot: Slot) -> tuple[Slot, Tensor]:
        """Tensors [n, ...] with the same moments along the axis of a slot; the slot in them."""

    def moments(self, mixed: Sequence[int]) -> Tensor:
        """sum_n x_n x_n^T along some axes of the parameter, for each index of the others.

        Args:
            mixed: the axes, in order.

        Returns:
            [c, m, m]: c indices of the other axes, m of these axes, each row by row.
        """


@dataclass(frozen=True)
class Full:
    """Gradients that are held as they are.

    Attributes:
        values: G, [n, *shape].
    """

    values: Tensor

    def full(self) -> Tensor:
        """G, [n, *shape]."""
        return self.values.double()

    def sum(self) -> Tensor:
        """sum_n G_n."""
        return self.values.double().sum(0)

    def along(self, slot: Slot) -> tuple[Slot, Tensor]:
        """The gradients."""
        return slot, self.full()

    def moments(self, mixed: Sequence[int]) -> Tensor:
        """sum_n x_n x_n^T, [c, m, m]."""
        if not mixed:
            return self.full().square().sum(0).reshape(-1, 1, 1)
        others = [axis for axis in range(self.values.dim() - 1) if axis not in mixed]
        ordered = self.full().permute(0, *(axis + 1 for axis in [*others, *mixed]))
        width = prod(self.values.shape[axis + 1] for axis in mixed)
        columns = ordered.reshape(len(ordered), -1, width).transpose(0, 1)
        return columns.mT @ columns


@dataclass(frozen=True)
class Outer:
    """Gradients that are outer products, G_n = d_n a_n^T.

    Attributes:
        back: d, [n, out], float64.
        seen: a, [n, in], float64.
    """

    back: Tensor
    seen: Tensor

    def full(self) -> Tensor:
        """G, [n, out, in]."""
        return self.back[:, :, None] * self.seen[:, None]

    def sum(self) -> Tensor:
        """sum_n d_n a_n^T."""
        return self.back.mT @ self.seen

    def along(self, slot: Slot) -> tuple[Slot, Tensor]:
        """Thin matrices, by two identities of outer products.

        G G^T = |a|^2 d d^T, [n, out, 1] of |a| d;   G^T G = |d|^2 a a^T, [n, 1, in] of |d| a
        """
        if slot.axis == 0:
            return slot, (self.seen.norm(dim=1, keepdim=True) * self.back)[:, :, None]
        back = self.back if slot.rows is None else self.back.narrow(1, *slot.rows)
        thin = (back.norm(dim=1, keepdim=True) * self.seen)[:, None]
        return replace(slot, rows=None), thin

    def moments(self, mixed: Sequence[int]) -> Tensor:
        """sum_n a_nj^2 d_n d_n^T, or sum_n d_ni^2 a_n a_n^T, or sum_n d_ni^2 a_nj^2."""
        if len(mixed) == 2:
            return Full(self.full()).moments(mixed)
        if not mixed:
            return (self.back.square().mT @ self.seen.square()).reshape(-1, 1, 1)
        along, other = (self.back, self.seen) if mixed[0] == 0 else (self.seen, self.back)
        width = along.shape[1]
        total = along.new_zeros(other.shape[1], width**2)
        size = max(1, ENTRIES // width**2)
        for x, weight in zip(along.split(size), other.square().split(size), strict=True):
            total += weight.mT @ (x[:, :, None] * x[:, None]).flatten(1)
        return total.unflatten(1, (width, width))
