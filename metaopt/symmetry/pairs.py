"""Which parameters lie on the two sides of linear pairs, and how these move.

    A -> g A,   B -> B g^-1        for each pair: a LoRA adapter, a factorised layer, a head
    G_A -> g^-T G_A,   G_B -> G_B g^T

A is all that makes the k numbers between the two, B all that reads them. Nothing but linear maps
lies between, so that the outputs stay the same on any data. A *row* is a vector along the k
numbers: a column of A, a row of B, a bias. So rows of weights move by g^T on the side of A and by
g^-1 on that of B, rows of gradients by g^-1 and g^T, and the products A A^T and B^T B are sums of
outer products of rows.

Everything here is batched over trajectories and over pairs of one width, and does not wait for the
device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.symmetry.groups import Group, Slot, Symmetry

MAKES, READS = 0, 1
"""The two sides of a pair."""
_BATCH = 2
"""Axes in front of a parameter's own: trajectories, and parameters that are stacked."""


@dataclass(frozen=True)
class Face:
    """Parameters of one shape that lie alike on one side of pairs of one width.

    Attributes:
        tensors: their positions among the weights.
        shape: the shape of each.
        slot: where the rows lie, on an axis counted after [B, number of tensors].
        side: ``MAKES`` or ``READS``.
        blocks: the number of pairs that each of them belongs to.
        pairs: the numbers of these pairs, int64 [number of tensors * blocks].
    """

    tensors: tuple[int, ...]
    shape: torch.Size
    slot: Slot
    side: int
    blocks: int
    pairs: Tensor

    @property
    def is_first(self) -> bool:
        """Whether the k numbers lie along the first axis of the parameters, their rows."""
        return self.slot.axis == _BATCH

    @cached_property
    def whole(self) -> int | None:
        """The axis of the matrix [out, rest] that is all along the k numbers, if there is one."""
        slot, axis = self.slot, self.slot.axis - _BATCH
        if slot.start or any(n > 1 for role, n in slot.factors if role != "unit"):
            return None
        if self.blocks > 1:
            return None
        rest = math.prod(self.shape[1:])
        return (
            axis
            if self.covers(self.shape[axis])
            and (axis == 0 or (axis == 1 and rest == self.shape[1]))
            else None
        )

    def covers(self, size: int) -> bool:
        """Whether all that lies along the axis of the rows, of pairs of this width, is theirs."""
        slot = self.slot
        return not slot.start and slot.length(self.blocks, size) == self.shape[slot.axis - _BATCH]

    def matrices(self, tensors: Sequence[Tensor]) -> Tensor:
        """The parameters as matrices whose rows are rows, where one axis is whole."""
        own = [tensors[i] for i in self.tensors]
        joined = own[0][:, None] if len(own) == 1 else torch.stack(own, dim=1)
        return joined.mT if self.whole == 0 else joined

    def stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        """The parameters [B, out, rest] side by side: [B, number of tensors, *shape]."""
        own = [tensors[i].reshape(-1, *self.shape) for i in self.tensors]
        return torch.stack(own, dim=1)

    def rows(self, tensors: Sequence[Tensor], size: int) -> Tensor:
        """The rows of each pair: [B, pairs of this face, rows, k]."""
        if self.whole is not None:
            return self.matrices(tensors)
        stacked = self.stacked(tensors)
        batch, count = stacked.shape[:2]
        found = self.slot.entries(stacked, self.blocks, size)
        apart = found.reshape(*found.shape[:3], batch, count, -1)
        return apart.permute(3, 4, 1, 0, 5, 2).reshape(batch, count * self.blocks, -1, size)

    def placed(self, rows: Tensor, tensors: Sequence[Tensor], size: int) -> list[Tensor]:
        """The parameters with given rows in the place of their own, each [B, out, rest].

        Args:
            rows: [B, pairs of this face, rows, k], as ``rows`` returns them.
            tensors: all tensors, each [B, out, rest]; what lies on no row is theirs.
            size: k.
        """
        if self.whole is not None:
            return list((rows.mT if self.whole == 0 else rows).unbind(1))
        stacked = self.stacked(tensors)
        batch, count = stacked.shape[:2]

        def put(entries: Tensor) -> Tensor:
            # [copies, blocks, k, B * count * rest]; a row is a column here.
            apart = rows.reshape(batch, count, self.blocks, entries.shape[0], -1, size)
            return apart.permute(3, 2, 5, 0, 1, 4).reshape(entries.shape)

        moved = self.slot.apply(stacked, self.blocks, size, put)
        return [
            one.reshape(tensors[i].shape)
            for i, one in zip(self.tensors, moved.unbind(1), strict=True)
        ]

    def multiplied(self, tensors: Sequence[Tensor], matrices: Tensor, size: int) -> list[Tensor]:
        """The parameters with each row times its pair's matrix, each [B, out, rest].

        Args:
            tensors: all tensors, each [B, out, rest].
            matrices: [B, 2, pairs, k, k], by side.
            size: k.
        """
        own = matrices[:, self.side].index_select(1, self.pairs)
        return self.placed(self.rows(tensors, size) @ own, tensors, size)


@dataclass(frozen=True)
class Width:
    """All pairs of one width.

    Attributes:
        size: k.
        count: the number of pairs.
        faces: the parameters on their sides.
    """

    size: int
    count: int
    faces: tuple[Face, ...]

    @cached_property
    def first(self) -> Tensor:
        """Of each pair the first of those that lie on its tensors, int64 [pairs]: heads of one."""
        found = torch.arange(self.count)
        for face in self.faces:
            rows = face.pairs.unflatten(0, (-1, face.blocks))
            found = found.to(rows).scatter(0, face.pairs, rows[:, :1].expand_as(rows).flatten())
        return found

    def products(self, left: Sequence[Tensor], right: Sequence[Tensor] | None = None) -> Tensor:
        """Sums of outer products of rows, [B, 2, pairs, k, k]: A A^T and B^T B of weights.

        Args:
            left: tensors shaped like the weights, each [B, out, rest].
            right: others, for A G_A^T and B^T G_B; the same by default.
        """
        batch = left[0].shape[0]
        sums = left[0].new_zeros(batch, 2 * self.count, self.size, self.size)
        for face in self.faces:
            x = face.rows(left, self.size)
            y = x if right is None else face.rows(right, self.size)
            sums = sums.index_add(1, face.side * self.count + face.pairs, x.mT @ y)
        return sums.unflatten(1, (2, self.count))


@dataclass(frozen=True)
class LinearPairs:
    """All linear pairs of a network, width by width; no two have an entry in common.

    Attributes:
        widths: pairs of each width k.
        sides: of each tensor of the weights 0 if no pair moves it, 1 if it lies on the side that
            makes, -1 if on the side that reads; [tensors].
    """

    widths: tuple[Width, ...]
    sides: Tensor

    @property
    def count(self) -> int:
        """The number of pairs of all widths."""
        return sum(width.count for width in self.widths)

    @property
    def tensors(self) -> frozenset[int]:
        """The positions of the weights that a pair moves."""
        return frozenset(i for width in self.widths for face in width.faces for i in face.tensors)

    @cached_property
    def alone(self) -> tuple[Tensor, ...]:
        """Whether all that lies on a pair's tensors lies on one side of it and its kin (``first``).

        A multiple of I then multiplies each of its tensors by one number. Bool [pairs] for each
        width.
        """
        faces = [face for width in self.widths for face in width.faces]
        shared = Counter(i for face in faces for i in face.tensors)
        found = []
        for width in self.widths:
            alone = torch.ones(width.count, dtype=torch.bool, device=self.sides.device)
            for face in width.faces:
                if not face.covers(width.size) or any(shared[i] > 1 for i in face.tensors):
                    alone = alone.index_fill(0, face.pairs, False)
            found.append(alone)
        return tuple(found)

    def multiplied(self, tensors: Sequence[Tensor], matrices: Sequence[Tensor | None]) -> Weights:
        """Each row times its pair's matrix; tensors on no side stay.

        Args:
            tensors: shaped like the weights, each [B, out, rest].
            matrices: for each width [B, 2, pairs, k, k]; None where pairs stay.
        """
        moved = list(tensors)
        for width, own in zip(self.widths, matrices, strict=True):
            for face in width.faces if own is not None else ():
                assert own is not None
                changed = face.multiplied(moved, own, width.size)
                for i, one in zip(face.tensors, changed, strict=True):
                    moved[i] = one
        return tuple(moved)

    def to(self, device: torch.device | str) -> LinearPairs:
        """The same pairs with their index tensors on another device."""
        widths = (
            replace(
                width,
                faces=tuple(replace(face, pairs=face.pairs.to(device)) for face in width.faces),
            )
            for width in self.widths
        )
        return LinearPairs(tuple(widths), self.sides.to(device))

    def within(self, active: Sequence[bool]) -> bool:
        """Whether all tensors that a pair moves are active."""
        return all(active[i] for i in self.tensors)


def turned(products: Tensor, makes: Tensor, reads: Tensor) -> Tensor:
    """R^T X R of sums X of outer products of rows, after the rows of a side were multiplied by R.

    Args:
        products: [B, 2, pairs, k, k], as ``Width.products`` returns them.
        makes: R of the rows on the side that makes, [B, pairs, k, k].
        reads: R on the side that reads.
    """
    right = torch.stack([makes, reads], dim=1)
    return right.mT @ products @ right


def pairs_of(
    symmetries: Sequence[Symmetry],
    shapes: Mapping[str, torch.Size],
    granted: Collection[str] = ("",),
) -> LinearPairs | None:
    """The linear pairs of a model whose every parameter is given; None if there are none.

    Symmetries that rest on an assumption that is not granted are left out. Of two that have entries
    in common, as in a chain of three linear layers, the first is taken: what is kept of gradients
    on one of them is no function of itself once the other has moved.

    Args:
        symmetries: the symmetries of the model.
        shapes: the shapes of the given parameters by path, in the order of the weights.
        granted: the assumptions (``Symmetry.assumes``) that the caller takes for true.
    """
    places = {path: i for i, path in enumerate(shapes)}
    taken = {path: torch.zeros(shape, dtype=torch.bool) for path, shape in shapes.items()}
    chosen: list[Symmetry] = []
    for symmetry in symmetries:
        # exp of a single number is positive: of pairs of width 1 positive scaling is all there is.
        wanted = Group.LINEAR if symmetry.size > 1 else Group.SCALING
        if wanted not in symmetry.allows or symmetry.assumes not in granted:
            continue
        known = all(slot.path in places and _is_plain(slot) for slot in symmetry.slots)
        if not known or not symmetry.outgoing:
            continue
        own = {slot.path: taken[slot.path].clone() for slot in symmetry.slots}
        if all(_claim(own[slot.path], symmetry, slot) for slot in symmetry.slots):
            chosen.append(symmetry)
            taken |= own
    if not chosen:
        return None
    sides = torch.zeros(len(shapes))
    for symmetry in chosen:
        for sign, slots in ((1.0, symmetry.incoming), (-1.0, symmetry.outgoing)):
            for slot in slots:
                sides[places[slot.path]] = sign
    by_size: dict[int, list[Symmetry]] = {}
    for symmetry in chosen:
        by_size.setdefault(symmetry.size, []).append(symmetry)
    widths = tuple(_width(size, own, shapes, places) for size, own in by_size.items())
    return LinearPairs(widths, sides)


def _is_plain(slot: Slot) -> bool:
    return slot.rows is None and slot.groups == 1 and slot.power == 1


def _claim(taken: Tensor, symmetry: Symmetry, slot: Slot) -> bool:
    """Mark a slot's entries as taken; False if one of them was."""
    before = bool(slot.entries(taken, symmetry.blocks, symmetry.size).any())
    slot.change(taken, symmetry.blocks, symmetry.size, torch.ones_like)
    return not before


def _width(
    size: int,
    symmetries: Sequence[Symmetry],
    shapes: Mapping[str, torch.Size],
    places: Mapping[str, int],
) -> Width:
    """The pairs of one width; parameters that lie alike are put into one face."""
    count = sum(symmetry.blocks for symmetry in symmetries)
    alike: dict[tuple, list[tuple[int, int]]] = {}
    first = 0
    for symmetry in symmetries:
        for side, slots in ((MAKES, symmetry.incoming), (READS, symmetry.outgoing)):
            for number, slot in enumerate(slots):
                shape = shapes[slot.path]
                place = replace(slot, module="", name="", axis=slot.axis + _BATCH)
                key = (side, number, shape, place, symmetry.blocks)
                alike.setdefault(key, []).append((places[slot.path], first))
        first += symmetry.blocks
    faces = []
    for (side, _, shape, place, blocks), found in alike.items():
        numbers = torch.cat([torch.arange(first, first + blocks) for _, first in found])
        tensors = tuple(position for position, _ in found)
        faces.append(Face(tensors, shape, place, side, blocks, numbers))
    return Width(size, count, tuple(faces))
