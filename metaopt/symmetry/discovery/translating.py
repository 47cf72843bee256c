"""Moves of single parameters that no output sees: they ended unseen, and nothing spoilt them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from metaopt.symmetry.discovery.found import Found
from metaopt.symmetry.discovery.relations import Relations, Source
from metaopt.symmetry.discovery.shifts import Shift, Stage
from metaopt.symmetry.discovery.slots import slots
from metaopt.symmetry.groups import Group, Slot


def _unseen(relations: Relations) -> list[Shift]:
    """The shifts that are symmetries, in order of the first use of what they move."""
    order: dict[str, int] = {}
    for source in relations.sources:
        order.setdefault(source.path, source.order)
    found: dict[tuple[object, ...], Shift] = {}
    for shift in relations.ended:
        moves = shift.path in order and shift.path not in relations.used
        if moves and not any(_touches(shift, key) for key in relations.spoilt):
            found.setdefault(shift.key, shift)
    return sorted(
        found.values(), key=lambda s: (order[s.path], s.began.value, s.axis, s.places or (0,))
    )


def _touches(shift: Shift, key: tuple[object, ...]) -> bool:
    """Whether what was spoilt has entries in common with a shift."""
    *kind, places = key
    if tuple(kind) != shift.kind:
        return False
    if places is None or shift.places is None:
        return True
    assert isinstance(places, tuple)
    return not set(places).isdisjoint(shift.places)


def alone(relations: Relations, tensors: dict[str, Tensor]) -> list[Found]:
    """The translations, and the scales of whole tensors, that need no partner.

    Args:
        relations: what the operations demand, and which shifts ended unseen.
        tensors: path -> parameter.
    """
    sources = sorted(relations.sources, key=lambda s: s.order)
    starts = np.cumsum([0, *(len(s.labels) for s in sources)]).tolist()
    place = {s.path: start for s, start in reversed([*zip(sources, starts, strict=False)])}
    result = []
    for shift in _unseen(relations):
        moves = _scale if shift.began is Stage.SCALE else _translation
        one = moves(shift, tensors, place[shift.path])
        result += [] if one is None else [one]
    return result


def _scale(shift: Shift, tensors: dict[str, Tensor], first: int) -> Found:
    """One positive factor for all entries of a layer in front of a norm without eps."""
    slots = []
    for path in filter(None, (shift.path, shift.bias)):
        owner, _, name = path.rpartition(".")
        slots.append(Slot(owner, name, 0, 0, (("unit", 1), ("copy", tensors[path].shape[0]))))
    only = frozenset({Group.SCALING})
    return Found(Group.SCALING, 1, 1, tuple(slots), (), only, first)


def _translation(shift: Shift, tensors: dict[str, Tensor], first: int) -> Found | None:
    """A vector of its own for each entry of keys, a common one for the entries of other axes."""
    shape = tensors[shift.path].shape
    places = shift.places or tuple(range(shape[shift.axis]))
    number = np.full(shape[shift.axis], -1)
    number[list(places)] = np.arange(len(places))
    source = Source(shift.path, shift.axis, number)
    of_keys = shift.began is Stage.KEYS
    block = number if of_keys else np.minimum(number, 0)
    found = slots(source, block, np.zeros_like(number) if of_keys else number)
    if found is None:
        return None
    size, blocks = (1, len(places)) if of_keys else (len(places), 1)
    free = len(places) if of_keys else shape.numel() // shape[shift.axis]
    only = frozenset({Group.TRANSLATION})
    return Found(Group.TRANSLATION, size, blocks, tuple(found), (), only, first, free=free)
