"""The small systems of products that are left, solved once for all hidden units of a kind."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metaopt.symmetry.discovery.equations import (
    Components,
    ProductArrays,
    components,
    null_space,
)
from metaopt.symmetry.discovery.families import (
    Families,
    Family,
    Moves,
    Standing,
    mixed,
    moves,
)
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
    for labels in (system.left.c, system.left.a, system.left.b):
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
    c, a, b, p, q = system.left
    if not len(c):
        return []
    terms = np.stack([c, a, b])
    known = terms != FIXED
    ends = [
        np.concatenate([x[k] for x, k in zip(part, known, strict=True)])
        for part in ((c, c, c), terms)
    ]
    joined = components(len(system.of), *ends)[c]
    # The columns of each system, system by system, and the place of each within its system.
    pairs = np.unique(np.stack([np.broadcast_to(joined, terms.shape)[known], terms[known]]), axis=1)
    root, column = pairs
    late = np.isin(column, np.fromiter(last, np.int64, len(last)))
    order = np.lexsort([column, where.first[column], late, root])
    root, column = root[order], column[order]
    begins = np.flatnonzero(np.diff(root, prepend=-1))
    length = np.diff(begins, append=len(root))
    place = np.arange(len(root)) - np.repeat(begins, length)
    place_of = np.full(len(system.of) + 1, -1)
    place_of[column] = place
    # Two systems are of one kind if columns stand alike, and products join the same places.
    kind = np.zeros(len(system.of), np.uint64)
    with np.errstate(over="ignore"):
        np.add.at(kind, root, mixed(where.key[column] + mixed(place.astype(np.uint64))))
        shape = np.zeros(len(c), np.uint64)
        for number in (*place_of[terms], p, q):
            shape = mixed(shape + number.astype(np.uint64))
        np.add.at(kind, joined, shape)
    roots = root[begins]
    found = []
    for number in dict.fromkeys(kind[roots].tolist()):
        members = np.flatnonzero(kind[roots] == number)
        size = int(length[members[0]])
        rows = column[begins[members][:, None] + np.arange(size)]
        own = joined == roots[members[0]]
        columns = rows[0].tolist()
        found.append(
            Bundle(columns, null_space(_equations(system.left, own), columns, modulus), rows)
        )
    return found


def _equations(left: ProductArrays, own: npt.NDArray[np.bool_]) -> list[dict[int, int]]:
    """For some of the products the coefficient of each component."""
    rows = []
    for c, a, b, p, q in zip(*(x[own].tolist() for x in left), strict=True):
        row: dict[int, int] = defaultdict(int)
        for column, coefficient in ((c, 1), (a, -p), (b, -q)):
            if column != FIXED:
                row[column] += coefficient
        rows.append(dict(row))
    return rows


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
