"""Orthogonal matrices: where coordinates are mixed by sums and measured by norms alone."""

from __future__ import annotations

import numpy as np

from metaopt.symmetry.discovery.equations import Components, components
from metaopt.symmetry.discovery.families import by_role, families, fibers_of, moves, standing
from metaopt.symmetry.discovery.found import Found, found_of
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.values import FIXED
from metaopt.symmetry.groups import Group

ROTATIONS = frozenset({Group.ORTHOGONAL, Group.SIGNS})


def streams(relations: Relations, scales: Components) -> list[Found]:
    """O(n) on every stream, where it acts if all gains that ``blurs`` names are equal."""
    count = relations.count
    if not scales.odd.any():
        return []
    pairs = [(e.a, e.b) for e in relations.equals]
    pairs += [(p.c, p.a) for p in relations.products if p.gains]
    a, b = (np.concatenate([x[i] for x in pairs]) for i in (0, 1))
    known = (a != FIXED) & (b != FIXED)
    of = components(count, a[known], b[known])
    zero = np.zeros(count, bool)
    for stop in relations.stops:
        if stop.scale:
            zero[of[stop.labels]] = True
    for product in relations.products:
        if not product.gains:
            for labels in (product.c, product.a, product.b):
                zero[of[labels[labels != FIXED]]] = True
    normed = np.zeros(count, bool)
    normed[of[scales.odd]] = True
    mixing = fibers_of((f for f in relations.fibers if not f.gains), of)
    where = standing(relations, of, by_role(relations), relative=False)
    every = families(where, of, ~zero[of] & normed[of], mixing)
    result = []
    for family, move in zip(every.members, moves(where, every), strict=True):
        first = mixing[family.components[: family.size]]
        if family.size < 2 or (first != first[0]).any():
            continue
        inside = np.zeros(count, bool)
        inside[family.components] = True
        gains = [f.gains for f in relations.fibers if f.gains and inside[of[f.labels]].any()]
        blurs = tuple(dict.fromkeys(gains))
        one = found_of(relations, of, family, move, Group.ORTHOGONAL, ROTATIONS, blurs)
        result += [one] if one is not None else []
    return result
