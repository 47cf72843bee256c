"""Scales and rotations of pairs of coordinates, which rotary embeddings leave of a head."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from metaopt.symmetry.discovery.equations import Components, solved
from metaopt.symmetry.discovery.families import fibers_of, moves, numbered, standing
from metaopt.symmetry.discovery.found import Found, found_of
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.groups import Group


def rotary(relations: Relations, scales: Components) -> list[Found]:
    """Scales and rotations of pairs that operations only rotate, as rotary embeddings do."""
    if not relations.rotations:
        return []
    calls = frozenset().union(*(rotation.calls for rotation in relations.rotations))
    kept = [e for e in relations.equals if e.call not in calls]
    halves = replace(relations, equals=kept)
    system = solved(halves, "scale")
    where = standing(relations, system.of, system.sign)
    mixing = fibers_of((f for f in relations.fibers if f.call not in calls), system.of)
    free = ~system.zero & ~scales.zero
    first = np.concatenate([r.first for r in relations.rotations])
    second = np.concatenate([r.second for r in relations.rotations])
    a, b = system.of[first], system.of[second]
    alike = free[a] & free[b] & (a != b) & (where.key[a] == where.key[b])
    alike &= (mixing[a] == mixing[b]) & (where.key[a] != 0)
    pairs = np.unique(np.stack([a[alike], b[alike]], axis=1), axis=0)
    apart, times = np.unique(pairs, return_counts=True)
    once = set(apart[times == 1].tolist())
    order = pairs[np.argsort(where.first[pairs].min(axis=1), kind="stable")]
    kinds: dict[int, list[list[int]]] = defaultdict(list)
    for pair in order.tolist():
        if once.issuperset(pair):
            kinds[int(where.key[pair[0]])].append(pair)
    every = numbered(where, list(kinds.values()))
    result = []
    for family, move in zip(every.members, moves(where, every), strict=True):
        only = frozenset({Group.ROTARY})
        one = found_of(relations, system.of, family, move, Group.ROTARY, only)
        result += [one] if one is not None and one.incoming and one.outgoing else []
    return result
