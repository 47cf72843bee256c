"""The hidden units of a model's symmetries, as learned rules scale them (``metaopt.units``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metaopt.models.groups import Group, Slot, Symmetry
from metaopt.network import as_matrices
from metaopt.units import MAKES, READS, Stretch, Units


def units_of(symmetries: Sequence[Symmetry], shapes: Mapping[str, torch.Size]) -> Units | None:
    """The units of those symmetries that allow positive scaling, or None where there are none.

    Left out are those that move anything beyond the parameters at hand, and those that rest on an
    assumption. A head of an attention has a unit for each of its queries' and values' components.

    Args:
        symmetries: of the model.
        shapes: of its parameters at hand, by path, in the order of the rules.

    Raises:
        ValueError: where a symmetry names an entry that a parameter does not have.
    """
    places = {path: i for i, path in enumerate(shapes)}
    chosen = [
        symmetry
        for symmetry in symmetries
        if Group.SCALING in symmetry.allows
        and not symmetry.assumes
        and all(slot.path in places for slot in symmetry.slots)
    ]
    if not chosen:
        return None
    sizes = [symmetry.blocks * symmetry.size for symmetry in chosen]
    none, first = sum(sizes), 0
    stretches = []
    for i, (symmetry, size) in enumerate(zip(chosen, sizes, strict=True)):
        for sign, slots in ((MAKES, symmetry.incoming), (READS, symmetry.outgoing)):
            for slot in slots:
                unit = _numbered(symmetry, slot, shapes[slot.path], first, none)
                stretches.append(Stretch.of(places[slot.path], sign, i, size, unit, none))
        first += size
    return Units(tuple(sizes), tuple(stretches))


def _numbered(symmetry: Symmetry, slot: Slot, shape: torch.Size, first: int, none: int) -> Tensor:
    """The unit of each entry of a parameter, as a matrix [out, rest]."""
    blocks, size = symmetry.blocks, symmetry.size
    numbers = torch.arange(first, first + blocks * size, device="cpu").reshape(1, blocks, size, 1)
    empty = torch.full(shape, none, device="cpu")
    try:
        filled = slot.apply(empty, blocks, size, lambda stretch: numbers.expand_as(stretch))
    except (RuntimeError, IndexError):
        raise ValueError(
            f"{symmetry.name!r}: its stretch of {slot.path!r} lies outside of {list(shape)}"
        ) from None
    return as_matrices(filled[None])[0]
