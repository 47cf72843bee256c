"""What sums, products and functions of single entries demand of coordinates.

Operands are broadcast as torch does it. Axes are counted from the end, so that all of this holds
for inputs with any number of leading axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.rotations import rotated
from metaopt.symmetry.discovery.shifts import NONE, Stage, scales, scales_of_product
from metaopt.symmetry.discovery.values import Labels, Part, Value

T = TypeVar("T")
ADDED = "its output is added to another value"


def shape_of(values: Sequence[Value]) -> tuple[tuple[int | None, ...], bool]:
    """The sizes of the broadcast result, and whether there may be more axes before them."""
    rank = max(len(value.shape) for value in values)
    sizes: list[int | None] = []
    for dim in range(-rank, 0):
        found = [value.size(dim) for value in values]
        known = [n for n in found if n not in (None, 1)]
        sizes.append(known[0] if known else None if None in found else 1)
    return tuple(sizes), any(value.open for value in values)


def together(items: Sequence[T], held: Callable[[T], set[Any]]) -> list[list[T]]:
    """The items in groups: those that hold something in common, directly or by way of others."""
    found: list[tuple[set[Any], list[T]]] = []
    for item in items:
        own, group = set(held(item)), [item]
        apart = []
        for other, members in found:
            if other & own:
                own, group = own | other, group + members
            else:
                apart.append((other, members))
        found = [*apart, (own, group)]
    return [members for _, members in found]


def groups(values: Sequence[Value]) -> list[tuple[int, ...]]:
    """Sets of axes: those that parts of the values tie together, each ascending."""
    parts = [part for value in values for part in value.parts]
    tied = together(parts, lambda part: set(part.dims))
    return sorted(tuple(sorted({d for part in group for d in part.dims})) for group in tied)


def even_in(values: Sequence[Value], shape: Sequence[int | None]) -> frozenset[int]:
    """The axes along which all values are even."""
    dims = range(-len(shape), 0)
    return frozenset(d for d in dims if all(value.is_even(d) for value in values))


def _within(value: Value, dims: tuple[int, ...]) -> list[Part]:
    return [part for part in value.parts if set(part.dims) <= set(dims)]


def _recorded(
    relations: Relations, values: Sequence[Value], dims: tuple[int, ...], out: Labels, why: str = ""
) -> tuple[int, ...]:
    """Record the arrays of one group of axes; return those along which something fixed varies."""
    fixed = tuple(d for d in dims if any(value.varies(d) for value in values))
    operands = [(part.labels, part.dims) for value in values for part in _within(value, dims)]
    relations.record([*operands, (out, dims)], fixed, why)
    return fixed


def add(relations: Relations, values: Sequence[Value], why: str = ADDED) -> Value:
    """x + y + ..: all coordinates at one place move alike; with something that does not, none does.

    Args:
        relations: where the demands are written.
        values: the summands.
        why: the reason if one of them does not move.
    """
    shape, is_open = shape_of(values)
    parts: list[Part] = []
    for dims in groups(values):
        inside = [_within(value, dims) for value in values]
        varies = any(value.varies(d) for value in values for d in dims)
        if all(len(found) == 1 for found in inside) and not varies:
            labels, signs = _tied(relations, dims, [found[0] for found in inside], why)
        else:
            for part in (p for found in inside for p in found):
                relations.stop(part.labels, why)
                relations.alone(part.labels)
            whole = [p[0] for p in inside if len(p) == 1 and p[0].dims == dims]
            labels = whole[0].labels if whole else relations.new([shape[d] or 1 for d in dims])
            relations.stop(labels, why)
            signs = None
        fixed = _recorded(relations, values, dims, labels, why)
        # What does not move along any axis is no part of the sum.
        if fixed != dims:
            parts.append(Part(dims, labels, signs))
    repeats = "".join({value.repeats for value in values})
    passed = (Stage.COMMON, Stage.TABLE)
    shifts = frozenset(s for value in values for s in value.shifts if s.stage in passed)
    alike = frozenset.intersection(*(scales(value.shifts) for value in values))
    even = even_in(values, shape)
    return Value(shape, is_open, tuple(parts), repeats, shifts=shifts | alike, even=even)


def _tied(
    relations: Relations, dims: tuple[int, ...], summands: list[Part], why: str
) -> tuple[Labels, Labels | None]:
    """All coordinates at one place move alike; those that are broadcast, alike along an axis."""
    arrays = [part.over(dims) for part in summands]
    kept = rotated(relations, summands)
    for other in arrays[1:]:
        relations.equal(arrays[0], other, why=why)
    once = {d for part in summands for d in dims if d not in part.dims}
    for part in summands:
        relations.mix(part.labels, [i for i, d in enumerate(part.dims) if d in once])
    # The coordinates of the largest array stand for all that are tied to them.
    whole = max(arrays, key=lambda x: x.size) if kept is None else arrays[kept]
    shape = np.broadcast_shapes(*(x.shape for x in arrays))
    signs = summands[0].signs if len(summands) == 1 else None
    return np.broadcast_to(whole, shape), signs


def multiply(relations: Relations, values: Sequence[Value]) -> Value:
    """x y: the scales of both multiply.

    A number, or what is the same for all coordinates, lets every group pass. A factor of each
    coordinate lets scales pass, and permutations if it moves with them.
    """
    shape, is_open = shape_of(values)
    parts: list[Part] = []
    for dims in groups(values):
        ordered = sorted(values, key=lambda value: value.gains != "")
        inside = [part for value in ordered for part in _within(value, dims)]
        if len(inside) == 1 and inside[0].dims == dims:
            (part,) = inside
            fixed = _recorded(relations, values, dims, part.labels)
            if fixed:
                relations.mix(part.labels, tuple(dims.index(d) for d in fixed))
            sizes = [n if n is not None else 1 for n in (shape[d] for d in dims)]
            labels = np.broadcast_to(part.labels, np.broadcast_shapes(part.labels.shape, sizes))
            signs = None if part.signs is None else np.broadcast_to(part.signs, labels.shape)
            parts.append(Part(dims, labels, signs, relations.call if fixed else 0))
            continue
        gains = [v.gains for v in values if v.gains and _within(v, dims)]
        if any(not v.weight for v in values):
            relations.factors += [p.labels for v in values if v.weight for p in _within(v, dims)]
        alone = gains[0] if len(gains) == 1 and len(inside) == 2 else ""
        made = product(relations, dims, inside, [shape[d] or 1 for d in dims], alone)
        _recorded(relations, values, dims, made)
        parts.append(Part(dims, made))
    repeats = "".join({value.repeats for value in values})
    kept, cancelled = scales_of_product(value.shifts for value in values)
    relations.ending |= cancelled
    even = even_in(values, shape)
    return Value(shape, is_open, tuple(parts), repeats, shifts=kept, even=even)


class Placed(Protocol):
    """Coordinates along axes that have names: numbers of axes, or indices of a sum."""

    @property
    def names(self) -> tuple[Any, ...]:
        """The names of the axes."""

    @property
    def labels(self) -> Labels:
        """The coordinates."""

    def over(self, names: Sequence[Any]) -> Labels:
        """The labels with an axis for each name, of length 1 where they have none."""


def product(
    relations: Relations,
    names: Sequence[Any],
    factors: Sequence[Placed],
    sizes: Sequence[int] = (),
    gains: str = "",
) -> Labels:
    """New coordinates whose scales are the products of those of several factors.

    Args:
        relations: where the demands are written.
        names: the axes of the result.
        factors: the factors, equal gains last.
        sizes: the least sizes of the result's axes, if factors are broadcast.
        gains: the path of the gains that the last factor is.
    """
    arrays = [factor.over(names) for factor in factors]
    whole = np.broadcast_shapes(*(a.shape for a in arrays), tuple(sizes))
    total = arrays[0]
    for other in arrays[1:]:
        made = relations.new(whole)
        relations.product(made, total, other, gains=gains)
        total = made
    # A factor of each coordinate keeps them apart; one for all along an axis does not.
    shared = [sum(name in factor.names for factor in factors) > 1 for name in names]
    for factor in factors:
        apart = [i for i, name in enumerate(factor.names) if shared[names.index(name)]]
        relations.mix(factor.labels, apart, gains=gains)
    relations.mix(total, [i for i, is_shared in enumerate(shared) if is_shared], gains=gains)
    return total


def power(relations: Relations, value: Value, exponent: int) -> Value:
    """x^k for a whole number k: scales are raised to it; the sign passes if it is odd."""
    parts = []
    for part in value.parts:
        labels = relations.new(part.labels.shape)
        relations.product(labels, part.labels, part.labels, exponent, 0)
        relations.record([(part.labels, part.dims), (labels, part.dims)])
        relations.alone(part.labels)
        parts.append(Part(part.dims, labels))
    return replace(value, parts=tuple(parts), shifts=scales(value.shifts, exponent))


def homogeneous(relations: Relations, value: Value) -> Value:
    """f(a x) = a f(x) for a > 0, entry by entry: positive scales pass, signs do not."""
    for part in value.parts:
        relations.stop(part.labels, f"signs do not pass {relations.said}", scale=False)
        relations.alone(part.labels)
        relations.record([(part.labels, part.dims)])
    return replace(_unsigned(value), shifts=scales(value.shifts))


def curved(relations: Relations, value: Value, odd: bool = False) -> Value:
    """Any function of single entries: permutations pass, and changes of sign if it is odd."""
    for part in value.parts:
        relations.curved(part.labels, odd)
        relations.record([(part.labels, part.dims)])
    return replace(value, shifts=NONE) if odd else _unsigned(value)


def _unsigned(value: Value) -> Value:
    parts = tuple(Part(p.dims, p.labels) for p in value.parts)
    return replace(value, parts=parts, shifts=NONE)


def total(relations: Relations, value: Value, dims: Sequence[int], keep: bool) -> Value:
    """Sums and means over some axes: over coordinates, only permutations pass.

    Args:
        relations: where the demands are written.
        value: the value.
        dims: the axes, negative.
        keep: whether they stay, with length 1.
    """
    parts = []
    for part in value.parts:
        left = tuple(d for d in part.dims if d not in dims)
        if left == part.dims:
            parts.append(part)
            continue
        relations.stop(part.labels, f"only permutations pass {relations.said}")
        relations.alone(part.labels)
        operands = [(part.labels, part.dims)]
        if left:
            labels = relations.new([part.labels.shape[part.dims.index(d)] for d in left])
            relations.stop(labels, f"only permutations pass {relations.said}")
            operands.append((labels, left))
            parts.append(Part(left, labels))
        relations.record(operands)
    return _reduced(replace(value, shifts=scales(value.shifts)), tuple(parts), dims, keep)


def _reduced(value: Value, parts: tuple[Part, ...], dims: Sequence[int], keep: bool) -> Value:
    shape = tuple(
        1 if d in dims else n for d, n in zip(range(-len(value.shape), 0), value.shape, strict=True)
    )
    if keep:
        return replace(value, shape=shape, parts=parts)
    left = [d for d in range(-len(shape), 0) if d not in dims]
    place = {d: i - len(left) for i, d in enumerate(left)}
    moved = tuple(Part(tuple(place[d] for d in p.dims), p.labels, p.signs) for p in parts)
    return replace(value, shape=tuple(shape[d] for d in left), parts=moved)
