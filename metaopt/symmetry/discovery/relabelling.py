"""All permutations of units, of streams, of heads that a model allows."""

from __future__ import annotations

import numpy as np

from metaopt.symmetry.discovery.families import Families, Family, Standing, by_role, moves, standing
from metaopt.symmetry.discovery.found import Found, found_of
from metaopt.symmetry.discovery.permuting import Permuting, Seed, StuckError
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.values import Labels
from metaopt.symmetry.groups import Group


def permutations(relations: Relations) -> list[Found]:
    """Permutations of units, of streams, of heads, and of the queries of one key."""
    of = np.arange(relations.count)
    where = standing(relations, of, by_role(relations), relative=False)
    permuting = Permuting(relations)
    result: list[Found] = []
    seen: set[tuple[int, int]] = set()
    for source in where.sources:
        done: set[int] = set()
        for seed in permuting.seeds(source.labels):
            if seed.whole is not None and id(seed.whole) in done:
                continue
            followed = _followed(permuting, seed)
            if followed is None:
                continue
            done.add(id(seed))
            block, unit, blocks = followed
            moved = np.flatnonzero(unit >= 0)
            if not len(moved) or (int(moved[0]), len(moved)) in seen:
                continue
            seen.add((int(moved[0]), len(moved)))
            result += _permutation(relations, where, block, unit, (blocks, seed.count), moved)
    return result


def _followed(permuting: Permuting, seed: Seed) -> tuple[Labels, Labels, int] | None:
    """For each label its block and its unit, and the number of blocks; None if it is stuck."""
    parts = seed.blocks()
    try:
        alone = [permuting.follow(part) for part in parts[:1]]
        alone += [permuting.follow(part) for part in parts[1:]]
    except StuckError:
        alone = []
    if alone:
        unit = np.maximum.reduce(alone)
        block = np.argmax(np.stack(alone) >= 0, axis=0)
        return block, unit, len(alone)
    try:
        unit = permuting.follow(seed)
    except StuckError:
        return None
    return np.zeros_like(unit), unit, 1


def _permutation(
    relations: Relations,
    where: Standing,
    block: Labels,
    unit: Labels,
    shape: tuple[int, int],
    moved: Labels,
) -> list[Found]:
    number = np.where(unit >= 0, 0, -1)
    blocks, size = shape
    family = Family(blocks, size, int(where.first[moved].min()), moved)
    (move,) = moves(where, Families([family], number, block, unit))
    if not move.incoming and not move.outgoing:
        return []
    only = frozenset({Group.PERMUTATION})
    one = found_of(relations, np.arange(len(unit)), family, move, Group.PERMUTATION, only)
    return [] if one is None else [one]
