"""The small systems of products that are left, solved once for all hidden units of a kind."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metaopt.symmetry.discovery.equations import Components, components, null_space
from metaopt.symmetry.discovery.families import Families, Family, Moves, Standing, moves
from metaopt.symmetry.discovery.values import FIXED, Labels


@dataclass(frozen=True, eq=False)
class Bundle:
    """Products of several free exponents, the same for all units of a kind.

    Attributes:
        columns: the components of the first unit.
        vectors: what spans the solutions: the exponent of each column that moves.
        rows: [units, columns]: the components of each unit, in the order of the columns.
    """

    columns: list[int]
    vectors: list[dict[int, int]]
    rows: Labels


def bound(system: Components) -> npt.NDArray[np.bool_]:
    """For each label whether its component stands in a product that is left."""
    found = np.zeros(len(system.of), bool)
    for product in system.left:
        for labels in (product.c, product.a, product.b):
            found[labels[labels != FIXED]] = True
    return found[system.of]


def bundles(system: Components, where: Standing, last: set[int], modulus: int = 0) -> list[Bundle]:
    """The systems of products.

    Args:
        system: the components, and the products that are left.
        where: where components stand.
        last: components that are expressed by the others where that is possible.
        modulus: 2 for changes of sign.
    """
    if not system.left:
        return []
    a = np.concatenate([x for p in system.left for x in (p.c, p.c)])
    b = np.concatenate([x for p in system.left for x in (p.a, p.b)])
    known = b != FIXED
    joined = components(len(system.of), a[known], b[known])
    rows: dict[int, list[dict[int, int]]] = defaultdict(list)
    for product in system.left:
        c, x, y = (int(labels[0]) for labels in (product.c, product.a, product.b))
        row: dict[int, int] = defaultdict(int)
        for column, coefficient in ((c, 1), (x, -product.p), (y, -product.q)):
            if column != FIXED:
                row[column] += coefficient
        rows[int(joined[c])].append(dict(row))
    kinds: dict[tuple[object, ...], list[list[int]]] = defaultdict(list)
    systems: dict[tuple[object, ...], list[dict[int, int]]] = {}
    for found in rows.values():
        columns = {c for row in found for c in row}
        order = sorted(columns, key=lambda c: (c in last, int(where.first[c]), c))
        place = {c: i for i, c in enumerate(order)}
        shape = tuple(sorted(tuple(sorted((place[c], k) for c, k in r.items())) for r in found))
        kind = (*(int(where.key[c]) for c in order), shape)
        kinds[kind].append(order)
        systems.setdefault(kind, found)
    return [
        Bundle(several[0], null_space(systems[kind], several[0], modulus), np.array(several))
        for kind, several in kinds.items()
    ]


def move_of(where: Standing, bundle: Bundle, vector: dict[int, int]) -> tuple[Family, Moves]:
    """One solution for all units of a bundle: the components of a unit move together."""
    count = len(where.key)
    power, number = np.zeros(count, np.int64), np.full(count, -1)
    unit, block = np.zeros(count, np.int64), np.zeros(count, np.int64)
    rows = bundle.rows[:, [bundle.columns.index(c) for c in vector]]
    earliest = where.first[rows].argmin(axis=1)
    exponents = np.array(list(vector.values())) * where.turn[rows]
    # The first entry of all moves by g, not by its inverse.
    exponents *= np.sign(np.take_along_axis(exponents, earliest[:, None], axis=1))
    power[rows], number[rows] = exponents, 0
    unit[rows] = np.arange(len(rows))[:, None]
    family = Family(1, len(rows), int(where.first[rows].min()), rows.ravel())
    (move,) = moves(where, Families([family], number, block, unit), power)
    return family, move
