"""Which continuous groups a permutation carries along: heads their frames, units their scales.

A permutation carries a symmetry if all weights that this one moves belong to units that change
places, and each of its own parts (a unit that is scaled, a head that is rotated) to one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.symmetry.groups import Group, Slot, Symmetry

UNITWISE = (Group.SCALING, Group.SIGNS)
"""Groups that act on each unit alone."""


@dataclass(frozen=True)
class Carried:
    """A symmetry that moves along with a permutation.

    Attributes:
        symmetry: the symmetry that is carried.
        parts: int64 [blocks of the permutation, its units, r]: the numbers of the parts of the
            symmetry that belong to each unit, always in the same order.
    """

    symmetry: Symmetry
    parts: Tensor


@dataclass(frozen=True)
class Layout:
    """A permutation and what it carries.

    Attributes:
        symmetry: the permutation.
        carried: the symmetries that it carries, no two on the same weights.
        rest: of each slot the entries along its axis that nothing carried moves: None for all of
            them, else bool, broadcast over the tensor; slots without any are missing.
    """

    symmetry: Symmetry
    carried: tuple[Carried, ...]
    rest: tuple[tuple[Slot, Tensor | None], ...]


def parts_of(symmetry: Symmetry) -> int:
    """How many parts a symmetry has that move each by itself: units, or blocks."""
    units = symmetry.size if symmetry.group in UNITWISE else 1
    return symmetry.blocks * units


def layout(
    permutation: Symmetry, others: Sequence[Symmetry], shapes: Mapping[str, torch.Size]
) -> Layout:
    """What a permutation carries of some continuous symmetries and sign flips.

    Args:
        permutation: the permutation.
        others: the others, those first that shall be carried where two share weights.
        shapes: the shapes of all tensors.
    """
    own = {slot.path: slot.axis for slot in permutation.slots}
    units = _numbered(permutation, permutation.slots, permutation.size, shapes)
    free = {path: number >= 0 for path, number in units.items()}
    carried = []
    for other in others:
        if not {slot.path for slot in other.slots} <= set(own):
            continue
        each = other.size if other.group in UNITWISE else 1
        parts = _numbered(other, other.slots, each, shapes)
        found = _parts(permutation, parts_of(other), units, parts, free)
        if found is None:
            continue
        carried.append(Carried(other, found))
        for path, number in parts.items():
            free[path] = free[path] & (number < 0)
    rest: list[tuple[Slot, Tensor | None]] = []
    for slot in permutation.slots:
        left = _numbered(permutation, [slot], permutation.size, shapes)[slot.path] >= 0
        kept = left & free[slot.path]
        if bool(kept.any()):
            rest.append((slot, None if bool((kept == left).all()) else kept))
    return Layout(permutation, tuple(carried), tuple(rest))


def _numbered(
    symmetry: Symmetry, slots: Sequence[Slot], each: int, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """The number of the part at each entry, or -1; axes along which nothing varies have size 1.

    Args:
        symmetry: the symmetry.
        slots: some of its slots.
        each: the parts of a block: its size, or 1 if a block is one part.
        shapes: the shapes of all tensors.
    """
    blocks, size = symmetry.blocks, symmetry.size
    numbers = torch.arange(blocks * each).reshape(1, blocks, each, 1).expand(1, blocks, size, 1)
    found: dict[str, Tensor] = {}
    for slot in slots:
        kept = {slot.axis} | ({0, 1} if slot.groups > 1 else set())
        kept |= {0} if slot.rows is not None else set()
        shape = [n if i in kept else 1 for i, n in enumerate(shapes[slot.path])]
        empty = torch.full(shape, -1)
        filled = slot.apply(empty, blocks, size, lambda x: numbers.expand_as(x))
        before = found.get(slot.path)
        found[slot.path] = filled if before is None else torch.maximum(before, filled)
    return found


def _parts(
    permutation: Symmetry,
    count: int,
    units: Mapping[str, Tensor],
    parts: Mapping[str, Tensor],
    free: Mapping[str, Tensor],
) -> Tensor | None:
    """The parts of each unit; None if the permutation does not carry them."""
    unit_of = torch.full((count,), -1)
    for path, number in parts.items():
        if units[path].dim() != number.dim():
            return None
        unit, part, is_free = torch.broadcast_tensors(units[path], number, free[path])
        own = part >= 0
        if bool((own & ((unit < 0) | ~is_free)).any()):
            return None
        pairs = torch.unique(torch.stack([part[own], unit[own]]), dim=1)
        known = unit_of[pairs[0]]
        if len(torch.unique(pairs[0])) < pairs.shape[1] or bool(
            ((known >= 0) & (known != pairs[1])).any()
        ):
            return None
        unit_of[pairs[0]] = pairs[1]
    total = permutation.blocks * permutation.size
    if bool((unit_of < 0).any()) or count % total:
        return None
    times = torch.bincount(unit_of, minlength=total)
    if bool((times != times[0]).any()):
        return None
    order = unit_of.argsort(stable=True)
    return order.reshape(permutation.blocks, permutation.size, -1)
