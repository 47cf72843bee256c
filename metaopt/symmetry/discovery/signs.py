"""Changes of sign: of the units of odd functions, and of whatever else allows more than scales."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from metaopt.symmetry.discovery.bundles import bound, bundles, move_of
from metaopt.symmetry.discovery.equations import solved
from metaopt.symmetry.discovery.families import by_role, families, moves, standing
from metaopt.symmetry.discovery.found import Found, found_of
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.groups import Group, Slot

Atom = tuple[str, int, int, object, int]
"""A stretch of an axis: path, axis, start, rows, groups."""


def with_signs(relations: Relations, known: list[Found]) -> list[Found]:
    """All symmetries that are known, and the changes of sign that are not part of them.

    Scalings that allow changes of sign say so: they scale by any numbers but 0. Sets of entries
    whose signs change add modulo 2; what known symmetries span is not listed again.
    """
    candidates = _signs(relations)
    atoms = _Atoms([*known, *candidates])
    every, spanned = _Span(), _Span()
    for one in candidates:
        every.add(atoms.of(one))
    result = []
    for one in known:
        changes = atoms.of(one)
        if one.group is Group.SCALING and every.has(changes):
            one = replace(one, allows=one.allows | {Group.SIGNS})
        # A half turn of a rotary pair changes the signs of both of its coordinates.
        if Group.SIGNS in one.allows or one.group is Group.ROTARY:
            spanned.add(changes)
        result.append(one)
    return result + [one for one in candidates if spanned.add(atoms.of(one))]


class _Atoms:
    """Cuts the axes of parameters where any symmetry begins or ends."""

    def __init__(self, every: list[Found]) -> None:
        self._cuts: dict[Atom, set[int]] = defaultdict(set)
        for one in every:
            for slot in one.slots:
                length = slot.length(one.blocks, one.size)
                self._cuts[_axis(slot)] |= {slot.start, slot.start + length}

    def of(self, one: Found) -> frozenset[Atom]:
        """The stretches whose signs change; even powers do not."""
        found: set[Atom] = set()
        for slot in one.slots:
            axis = _axis(slot)
            stop = slot.start + slot.length(one.blocks, one.size)
            starts = {cut for cut in self._cuts[axis] if slot.start <= cut < stop}
            if slot.power % 2:
                found ^= {(axis[0], axis[1], start, axis[3], axis[4]) for start in starts}
        return frozenset(found)


def _axis(slot: Slot) -> Atom:
    picked = tuple(factor for factor in slot.factors if factor[0].startswith("pick"))
    return slot.path, slot.axis, 0, (slot.rows, picked), slot.groups


class _Span:
    """Sets of stretches that other sets generate by symmetric differences."""

    def __init__(self) -> None:
        # Each member by its leading stretch, the largest one in a fixed order.
        self._basis: dict[str, frozenset[Atom]] = {}

    def _reduced(self, atoms: frozenset[Atom]) -> frozenset[Atom]:
        while atoms and (member := self._basis.get(max(map(str, atoms)))):
            atoms ^= member
        return atoms

    def has(self, atoms: frozenset[Atom]) -> bool:
        """Whether a set is generated."""
        return not self._reduced(atoms)

    def add(self, atoms: frozenset[Atom]) -> bool:
        """Add a generator; whether it was not generated before."""
        left = self._reduced(atoms)
        if left:
            self._basis[max(map(str, left))] = left
        return bool(left)


def _signs(relations: Relations) -> list[Found]:
    """What spans all changes of sign of single units."""
    system = solved(relations, "sign", 2)
    where = standing(relations, system.of, by_role(relations), relative=False)
    free = ~system.zero & ~bound(system)
    every = families(where, system.of, free, None)
    several = [*zip(every.members, moves(where, every), strict=True)]
    several += [
        move_of(where, bundle, vector)
        for bundle in bundles(system, where, set(), 2)
        for vector in bundle.vectors
    ]
    only = frozenset({Group.SIGNS})
    result = []
    for family, move in several:
        entries = sum(
            slot.length(family.blocks, family.size) for slot in (*move.incoming, *move.outgoing)
        )
        one = found_of(relations, system.of, family, move, Group.SIGNS, only)
        # What stands in one place alone nothing undoes.
        if one is not None and entries > family.blocks * family.size:
            result.append(one)
    return sorted(result, key=lambda one: one.first)
