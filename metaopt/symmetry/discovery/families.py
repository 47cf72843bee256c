"""From solved equations to symmetries: units of one kind together, with the entries that they move.

Components in which the same axes of the same parameters stand, equally often and with the same
signs, are the units of one symmetry. Those that every operation mixes alike are one block, on which
matrices act.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from metaopt.symmetry.discovery.relations import Fibers, Relations, Source
from metaopt.symmetry.discovery.slots import slots
from metaopt.symmetry.discovery.values import FIXED, Labels
from metaopt.symmetry.groups import Slot

Hashes = npt.NDArray[np.uint64]


def mixed(numbers: npt.NDArray[np.uint64]) -> Hashes:
    """Numbers as good as random, one for each number (the finalizer of splitmix64)."""
    with np.errstate(over="ignore"):
        x = numbers + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class Standing:
    """Where the coordinates of components stand on the axes of parameters.

    Attributes:
        sources: the axes, by the order of their use.
        component: for each entry of each axis its component, or -1.
        sign: for each entry 1 or -1: its exponent relative to the component's first entry.
        key: for each label the hash of where its component stands; 0 if nowhere.
        first: for each label the place of its component's first entry, in order of use.
        turn: for each label the sign of its component's first entry.
    """

    sources: list[Source]
    component: list[Labels]
    sign: list[Labels]
    key: Hashes
    first: Labels
    turn: Labels


def by_role(relations: Relations) -> Labels:
    """For each label 1, or -1 if it stands where a parameter reads a hidden space."""
    sign = np.ones(relations.count, np.int64)
    for labels in relations.read:
        sign[labels[labels != FIXED]] = -1
    return sign


def standing(relations: Relations, of: Labels, sign: Labels, relative: bool = True) -> Standing:
    """Where the components stand.

    Args:
        relations: the relations, with all sources.
        of: for each label its component.
        sign: for each label its sign within the component.
        relative: whether signs count from that of the component's first entry.
    """
    sources = sorted(relations.sources, key=lambda s: s.order)
    if not sources:
        nothing = np.zeros(len(of), np.int64)
        return Standing([], [], [], nothing.astype(np.uint64), nothing, nothing)
    where = np.concatenate([np.full(len(s.labels), i) for i, s in enumerate(sources)])
    labels = np.concatenate([s.labels for s in sources])
    held = labels != FIXED
    component = np.where(held, of[np.maximum(labels, 0)], -1)
    signs = np.where(held, sign[np.maximum(labels, 0)], 0)
    known, places = np.unique(component, return_index=True)
    first = np.full(len(of), np.iinfo(np.int64).max)
    turn = np.ones(len(of), np.int64)
    first[known[known >= 0]] = places[known >= 0]
    if relative:
        turn[known[known >= 0]] = signs[places[known >= 0]]
    sides = np.where(held, signs * turn[np.maximum(component, 0)], 0)
    key = np.zeros(len(of), np.uint64)
    marks = mixed((2 * where + (sides > 0)).astype(np.uint64))
    with np.errstate(over="ignore"):
        np.add.at(key, component[held], marks[held])
    ends = np.cumsum([len(s.labels) for s in sources])[:-1]
    return Standing(sources, np.split(component, ends), np.split(sides, ends), key, first, turn)


def fibers_of(fibers: Iterable[Fibers], of: Labels) -> Hashes:
    """For each component a hash of the fibres in which its coordinates lie."""
    key = np.zeros(len(of), np.uint64)
    with np.errstate(over="ignore"):
        for number, found in enumerate(fibers, 1):
            marks = mixed(found.fiber.astype(np.uint64) + np.uint64(number << 40))
            np.add.at(key, of[found.labels], marks)
    return key


@dataclass(frozen=True, eq=False)
class Family:
    """The components that are the units of one symmetry.

    Attributes:
        blocks: how many blocks there are.
        size: how many units each has.
        first: the place of the first entry, in order of use.
        components: the components, block by block.
    """

    blocks: int
    size: int
    first: int
    components: Labels


@dataclass(frozen=True, eq=False)
class Families:
    """Several families without common components.

    Attributes:
        members: the families.
        number: for each label of a component the number of its family, else -1.
        block: the number of its block.
        unit: its number within the block.
    """

    members: list[Family]
    number: Labels
    block: Labels
    unit: Labels


def families(
    where: Standing, of: Labels, free: npt.NDArray[np.bool_], mixing: Hashes | None
) -> Families:
    """The free components by where they stand, and by how they may be mixed.

    Args:
        where: where components stand.
        of: for each label its component.
        free: for each label whether its component may move.
        mixing: for each component the hash of its fibres; None if none is mixed with another.
    """
    own = np.unique(of[free])
    own = own[where.key[own] != 0]
    own = own[np.argsort(where.first[own], kind="stable")]
    if mixing is None:
        mixing = mixed(np.arange(len(of), dtype=np.uint64))
    with np.errstate(over="ignore"):
        block = _groups(mixed(where.key[own]) + mixing[own])
        size = np.bincount(block)[block] if len(own) else block
        kind = _groups(mixed(where.key[own]) + size.astype(np.uint64))
    # Components kind by kind, and within a kind block by block, otherwise as they are.
    order = np.lexsort([block, kind])
    ends = np.flatnonzero(np.diff(kind[order])) + 1
    several = [
        own[at].reshape(-1, size[at[0]] if size[at[0]] > 1 else len(at))
        for at in np.split(order, ends)
        if len(at)
    ]
    return numbered(where, several)


def _groups(keys: Hashes) -> Labels:
    """For each entry the number of its key, by the first place of each key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse]


def numbered(where: Standing, several: Sequence[npt.ArrayLike]) -> Families:
    """Families given by their components, each [blocks, size]."""
    count = len(where.key)
    number, block, unit = np.full(count, -1), np.zeros(count, int), np.zeros(count, int)
    members = []
    for i, blocks in enumerate(several):
        whole = np.array(blocks, np.int64)
        rows, columns = np.indices(whole.shape)
        number[whole], block[whole], unit[whole] = i, rows, columns
        first = int(where.first[whole].min())
        members.append(Family(len(whole), whole.shape[1], first, whole.ravel()))
    return Families(members, number, block, unit)


@dataclass(eq=False)
class Moves:
    """The slots that move by g and by g^-T; ``regular`` is false if units lie in no order."""

    incoming: list[Slot] = field(default_factory=list)
    outgoing: list[Slot] = field(default_factory=list)
    regular: bool = True


def moves(where: Standing, found: Families, power: Labels | None = None) -> list[Moves]:
    """For each family which entries of which tensors it moves.

    Args:
        where: where components stand.
        found: the families.
        power: for each label of a component the power of g with which it moves; 1 if None.
    """
    result = [Moves() for _ in found.members]
    for source, component, sign in zip(where.sources, where.component, where.sign, strict=True):
        at = np.maximum(component, 0)
        own = np.where(component >= 0, found.number[at], -1)
        exponent = sign if power is None else sign * power[at]
        for i in np.unique(own[own >= 0]).tolist():
            for value in np.unique(exponent[own == i]).tolist():
                if not value:
                    continue
                here = np.where((own == i) & (exponent == value), found.block[at], -1)
                some = slots(source, here, found.unit[at], abs(value))
                if some is None:
                    result[i].regular = False
                else:
                    (result[i].incoming if value > 0 else result[i].outgoing).extend(some)
    return result
