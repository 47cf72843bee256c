"""Solves the equations of ``discovery.relations`` for scales (over the rationals) or signs (mod 2).

Equations s_a = +-s_b make components: coordinates whose scales are those of one, up to the sign of
the exponent. Products that involve a coordinate with s = 0 are such equations too. What is left are
products of several free scales, as in a gated unit with a ReLU gate: a few small systems, one for
each hidden unit, the same for all units of a layer, and solved once for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from metaopt.symmetry.discovery.relations import Product, Relations
from metaopt.symmetry.discovery.values import FIXED, Labels

Flags = npt.NDArray[np.bool_]


def components(count: int, a: Labels, b: Labels) -> Labels:
    """For each of ``count`` nodes the smallest node that edges a - b connect it with."""
    root = np.arange(count)
    first, second = root[a], root[b]
    while (apart := first != second).any():
        a, b, first, second = a[apart], b[apart], first[apart], second[apart]
        low = np.minimum(first, second)
        np.minimum.at(root, first, low)
        np.minimum.at(root, second, low)
        while not np.array_equal(shorter := root[root], root):
            root = shorter
        first, second = root[a], root[b]
    return root


class ProductArrays(NamedTuple):
    """Products as arrays: s_c = p s_a + q s_b for each entry."""

    c: Labels
    a: Labels
    b: Labels
    p: Labels
    q: Labels


@dataclass(frozen=True, eq=False)
class Components:
    """Coordinates whose exponents are equal up to a sign.

    Attributes:
        of: for each label its component, named by its smallest label.
        sign: for each label 1 or -1: the exponent relative to that label's.
        zero: for each label whether its exponent must be 0.
        odd: for each label whether it is equal to its own negative, so that its scale is 1, but
            not for a reason that rotations would share.
        left: the products that involve several free exponents, in terms of components.
    """

    of: Labels
    sign: Labels
    zero: Flags
    odd: Flags
    left: ProductArrays


def _signed(count: int, a: Labels, b: Labels, sign: Labels) -> tuple[Labels, Labels, Flags]:
    """Components under signed edges: by way of two nodes for each label, a and its negative."""
    same = sign > 0
    first = np.concatenate([a, a + count])
    second = np.concatenate([np.where(same, b, b + count), np.where(same, b + count, b)])
    root = components(2 * count, first, second)
    plus, minus = root[:count], root[count:]
    of = np.minimum(plus, minus)
    return of, np.where(plus <= minus, 1, -1), plus == minus


def solved(relations: Relations, kind: str, modulus: int = 0) -> Components:
    """The components of all coordinates for scales, or with modulus 2 for changes of sign.

    Args:
        relations: the relations.
        kind: "scale" or "sign": which stops count.
        modulus: 2 for signs.
    """
    count = relations.count
    own = relations.equals
    a, b = (np.concatenate([np.empty(0, np.int64), *(getattr(e, n) for e in own)]) for n in "ab")
    sign = np.concatenate([np.empty(0, np.int64), *(np.full(len(e.a), e.sign) for e in own)])
    stopped = np.zeros(count, bool)
    for stop in relations.stops:
        if getattr(stop, kind):
            stopped[stop.labels] = True
    selfs = np.zeros(count, bool)
    for mirror in relations.mirrors:
        selfs[mirror.labels] = True
    products = _flat(relations.products)
    while True:
        of, signs, twisted = _signed(count, a, b, sign)
        zero, odd = np.zeros(count, bool), np.zeros(count, bool)
        np.logical_or.at(zero, of, stopped)
        np.logical_or.at(odd, of, selfs | twisted)
        zero, odd = zero[of], odd[of]
        nought = zero if modulus else zero | odd
        more = _simplified(products, nought, modulus)
        if more is None:
            break
        products, new_a, new_b, new_sign, new_zero = more
        a, b = np.concatenate([a, new_a]), np.concatenate([b, new_b])
        sign = np.concatenate([sign, new_sign])
        stopped[new_zero] = True
    return Components(of, signs, nought, odd & ~zero, _named(products, of, signs))


def _flat(products: list[Product]) -> ProductArrays:
    """All products in one."""
    empty = np.empty(0, np.int64)
    columns = [np.concatenate([empty, *(getattr(x, n) for x in products)]) for n in ("c", "a", "b")]
    powers = [
        np.concatenate([empty, *(np.full(len(x.c), getattr(x, n)) for x in products)])
        for n in ("p", "q")
    ]
    return ProductArrays(*columns, *powers)


def _simplified(
    products: ProductArrays, zero: Flags, modulus: int
) -> tuple[ProductArrays, Labels, Labels, Labels, Labels] | None:
    """Products with at most two exponents that are not 0, as equations; None if there are none."""
    c, a, b, p, q = products
    if not len(c):
        return None

    def is_zero(x: Labels) -> Flags:
        return (x == FIXED) | zero[np.maximum(x, 0)]

    parity = modulus == 2
    no_c, no_a = is_zero(c), is_zero(a) | ((p % 2 == 0) if parity else (p == 0))
    no_b = is_zero(b) | ((q % 2 == 0) if parity else (q == 0))
    free = 3 - no_c.astype(int) - no_a - no_b
    one = free == 1
    lone = np.where(~no_c, c, np.where(~no_a, a, b))[one]
    two = free == 2
    units = (np.abs(p) == 1) & (np.abs(q) == 1) if not parity else np.ones(len(c), bool)
    simple_p, simple_q = (np.abs(p) == 1) | parity, (np.abs(q) == 1) | parity
    ca = two & no_b & simple_p
    cb = two & no_a & simple_q
    ab = two & no_c & units
    used = one | (free <= 0) | ca | cb | ab
    if not used.any():
        return None
    first = np.concatenate([c[ca], c[cb], a[ab]])
    second = np.concatenate([a[ca], b[cb], b[ab]])
    signs = np.concatenate([p[ca], q[cb], -p[ab] * q[ab]])
    if parity:
        signs = np.ones_like(signs)
    kept = ~used
    rest = ProductArrays(c[kept], a[kept], b[kept], p[kept], q[kept])
    return rest, first, second, signs, lone


def _named(products: ProductArrays, of: Labels, sign: Labels) -> ProductArrays:
    """What is left, in terms of components."""
    c, a, b, p, q = products
    turn = sign[c]
    named_a, named_b = (np.where(x == FIXED, FIXED, of[np.maximum(x, 0)]) for x in (a, b))
    return ProductArrays(of[c], named_a, named_b, p * turn * sign[a], q * turn * sign[b])


def null_space(
    rows: list[dict[int, int]], columns: list[int], modulus: int = 0
) -> list[dict[int, int]]:
    """Integer vectors that span the solutions of a small homogeneous system.

    Args:
        rows: for each equation its coefficients by column.
        columns: the unknowns; the last ones are expressed by the first.
        modulus: 2 for arithmetic modulo 2, else 0.
    """
    order = columns[::-1]
    matrix = [[Fraction(row.get(c, 0)) for c in order] for row in rows]
    pivots: list[int] = []
    for j in range(len(order)):
        i = len(pivots)
        at = next((k for k in range(i, len(matrix)) if _reduced(matrix[k][j], modulus)), None)
        if at is None:
            continue
        matrix[i], matrix[at] = matrix[at], matrix[i]
        matrix[i] = [_reduced(x / matrix[i][j], modulus) for x in matrix[i]]
        for k in range(len(matrix)):
            if k != i and matrix[k][j]:
                factor = matrix[k][j]
                matrix[k] = [
                    _reduced(x - factor * y, modulus)
                    for x, y in zip(matrix[k], matrix[i], strict=True)
                ]
        pivots.append(j)
    found = []
    for j in range(len(order) - 1, -1, -1):
        if j in pivots:
            continue
        vector = {order[j]: Fraction(1)}
        for i, pivot in enumerate(pivots):
            if matrix[i][j]:
                vector[order[pivot]] = _reduced(-matrix[i][j], modulus)
        scale = np.lcm.reduce([x.denominator for x in vector.values()])
        found.append({c: int(x * int(scale)) for c, x in vector.items()})
    return found


def _reduced(x: Fraction, modulus: int) -> Fraction:
    return Fraction(int(x) % 2) if modulus == 2 else x
