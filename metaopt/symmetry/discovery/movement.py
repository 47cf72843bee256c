"""Views, slices, concatenations: what moves data about moves labels about in the same way.

Where all sizes are known, the operation itself is applied to the labels. Where a symbolic trace
leaves sizes open, a few operations are known: those after which the coordinates still lie along
one axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaopt.symmetry.discovery.algebra import groups, product, shape_of
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.shifts import Shift, Stage
from metaopt.symmetry.discovery.values import FIXED, Labels, Part, Value

LARGE = 1 << 20
"""From this many numbers on it is not looked up which of them are equal."""


class UnclearError(Exception):
    """An operation moves coordinates in a way that cannot be followed."""


def moved(relations: Relations, value: Value, operation: Callable[[Tensor], Any]) -> list[Value]:
    """The results of an operation that only moves entries, or repeats or drops some.

    Coordinates that are taken alone, each for a whole tensor, must not move.

    Args:
        relations: where that is written.
        value: a value of which all sizes are known.
        operation: what to do with a tensor of its shape; it returns a tensor or a list of them.

    Raises:
        UnclearError: if the coordinates do not lie along axes of their own afterwards.
    """
    shape = tuple(n for n in value.shape if n is not None)
    if value.open or len(shape) < len(value.shape):
        raise UnclearError
    with torch.device("cpu"), torch.no_grad():
        plain = _tensors(operation(_places(value, shape)))
        shifts = frozenset(s for s in value.shifts if s.stage in (Stage.TABLE, Stage.SCALE))
        results = [
            Value(tuple(found.shape), weight=value.weight, shifts=shifts, even=_even(found))
            for found in plain
        ]
        for part in value.parts:
            labels = _tensors(operation(_spread(part.labels, part.dims, shape)))
            signs = [None] * len(labels)
            if part.signs is not None:
                signs = _tensors(operation(_spread(part.signs, part.dims, shape)))
            for i, (found, changed) in enumerate(zip(labels, signs, strict=True)):
                new = _gathered(found, changed)
                if not new.dims:
                    relations.fix(new.labels, f"{relations.said} takes one coordinate alone")
                    continue
                if any(set(new.dims) & set(other.dims) for other in results[i].parts):
                    # Axes of their own become one, as heads and their units before a projection.
                    return moved(relations, _joined(relations, value), operation)
                shifts = results[i].shifts | _carried(value, part, new)
                results[i] = replace(results[i], parts=(*results[i].parts, new), shifts=shifts)
    return results


def _joined(relations: Relations, value: Value) -> Value:
    """The value with one array of coordinates along all axes on which it has any.

    Raises:
        UnclearError: if it has one already, or changes of sign.
    """
    if len(value.parts) < 2 or any(part.signs is not None for part in value.parts):
        raise UnclearError
    dims = tuple(sorted(d for part in value.parts for d in part.dims))
    labels = product(relations, dims, value.parts)
    operands = [(part.labels, part.dims) for part in value.parts]
    relations.record([*operands, (labels, dims)])
    return replace(value, parts=(Part(dims, labels),))


def _carried(value: Value, before: Part, after: Part) -> frozenset[Shift]:
    """The shifts of a value as they go on with a part of it."""
    held = np.unique(before.labels)
    same = np.array_equal(held, np.unique(after.labels))
    flat = len(before.dims) == len(after.dims) == 1
    found = set()
    for shift in value.shifts:
        if shift.stage is Stage.KEYS:
            if same or shift.origin >= 0:
                places = (np.unique(after.labels) - shift.origin).tolist()
                found.add(shift if same else replace(shift, places=tuple(places)))
        elif shift.stage is Stage.COMMON and same and flat and shift.dims == before.dims:
            found.add(shift.common_along(after.dims))
    return frozenset(found)


def _places(value: Value, shape: tuple[int, ...]) -> Tensor:
    """A number for each place, the same along axes on which the value is even."""
    dims = range(-len(shape), 0)
    sizes = [1 if value.is_even(d) else n for d, n in zip(dims, shape, strict=True)]
    count = math.prod(sizes)
    if count > LARGE:
        return torch.zeros((), dtype=torch.int8).expand(shape)
    return torch.arange(count).reshape(sizes).expand(shape)


def _even(found: Tensor) -> frozenset[int]:
    """The axes along which all numbers are equal."""
    if found.dtype == torch.int8:
        return frozenset()
    return frozenset(
        d
        for d in range(-found.dim(), 0)
        if found.shape[d] > 1 and bool((found == found.narrow(d, 0, 1)).all())
    )


def _tensors(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple | list) else [found]


def _spread(labels: Labels, dims: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Labels along some axes as a tensor of a whole shape, which takes no more memory."""
    sizes = [shape[d] if d in dims else 1 for d in range(-len(shape), 0)]
    return torch.from_numpy(labels.copy()).reshape(sizes).expand(shape)


def _gathered(found: Tensor, signs: Tensor | None) -> Part:
    """The part that a tensor of labels shows: the axes along which labels vary."""
    dims = []
    for d in range(-found.dim(), 0):
        if found.shape[d] == 0:
            raise UnclearError
        if found.shape[d] == 1 or found.stride(d) == 0:
            continue
        alike = [x is None or bool((x == x.narrow(d, 0, 1)).all()) for x in (found, signs)]
        if all(alike):
            found = found.narrow(d, 0, 1)
            signs = None if signs is None else signs.narrow(d, 0, 1)
        else:
            dims.append(d)
    index = tuple(slice(None) if d in dims else 0 for d in range(-found.dim(), 0))
    changed = None if signs is None else signs[index].contiguous().numpy()
    return Part(tuple(dims), found[index].contiguous().numpy(), changed)


def negated(value: Value) -> Value:
    """-x: each coordinate stands there with its sign changed."""
    parts = (
        replace(p, signs=-(np.ones_like(p.labels) if p.signs is None else p.signs))
        for p in value.parts
    )
    return replace(value, parts=tuple(parts))


def added_axis(value: Value, dim: int) -> Value:
    """The value with one more axis of length 1, at a place counted from the end."""
    place = len(value.shape) + dim + 1
    shape = (*value.shape[:place], 1, *value.shape[place:])
    parts = (
        replace(part, dims=tuple(d if d > dim else d - 1 for d in part.dims))
        for part in value.parts
    )
    return replace(value, shape=shape, parts=tuple(parts))


def concatenated(relations: Relations, values: Sequence[Value], dim: int) -> Value:
    """Several tensors one after the other along an axis, counted from the end.

    Coordinates along other axes are shared by all of them, and so have to move alike.
    """
    # torch skips empty tensors, with which caches begin.
    values = [value for value in values if 0 not in value.shape] or list(values)
    if len(values) == 1:
        return values[0]
    shape, is_open = shape_of(values)
    sizes = [value.size(dim) for value in values]
    length = None if None in sizes else sum(n for n in sizes if n is not None)
    whole = tuple(
        length if d == dim else n for d, n in zip(range(-len(shape), 0), shape, strict=True)
    )
    parts = []
    shifts: set[Shift] = set()
    why = "it is concatenated with another value"
    for dims in groups(values):
        inside = [[p for p in value.parts if set(p.dims) <= set(dims)] for value in values]
        if any(len(found) > 1 or (found and found[0].dims != dims) for found in inside):
            raise UnclearError
        apart = [found[0].labels for found in inside if found]
        alike = all(np.array_equal(apart[0], labels) for labels in apart[1:])
        if dim not in dims and set(sizes) == {1} and len(apart) == len(values) and not alike:
            parts.append(_stacked([found[0] for found in inside], dim))
            continue
        if dim not in dims:
            for found in inside:
                if found:
                    relations.equal(apart[0], found[0].labels, why=why)
                else:
                    relations.fix(apart[0], why)
            relations.record([(found[0].labels, dims) for found in inside if found])
            parts.append(Part(dims, apart[0]))
            shifts |= {s for v in values for s in v.shifts if s.dims and set(s.dims) <= set(dims)}
            continue
        if length is None:
            raise UnclearError
        arrays, signs = [], []
        for found, size in zip(inside, sizes, strict=True):
            full = [size if d == dim else shape[d] or 1 for d in dims]
            blank = np.full([n or 1 for n in full], FIXED, dtype=np.int64)
            arrays.append(found[0].labels if found else blank)
            own = found[0].signs if found else None
            signs.append(np.ones_like(arrays[-1]) if own is None else own)
        axis = dims.index(dim)
        changed = np.concatenate(signs, axis)
        labels = np.concatenate(arrays, axis)
        parts.append(Part(dims, labels, None if (changed == 1).all() else changed))
    return Value(whole, is_open, tuple(parts), shifts=frozenset(shifts))


def unfolded(value: Value, length: int | None) -> Value:
    """A flattened image or sequence, with labels for all entries of its last axis.

    Raises:
        UnclearError: if the length is no multiple of the number of coordinates.
    """
    (part,) = value.parts
    units = len(part.labels)
    if length is None or length % units:
        raise UnclearError
    times = length // units
    spread = np.repeat if value.repeats == "inner" else np.tile
    labels = spread(part.labels, times)
    shape = (*value.shape[:-1], length)
    return Value(shape, value.open, (Part((-1,), labels),))


def _stacked(parts: Sequence[Part], dim: int) -> Part:
    """Coordinates of several tensors side by side along an axis of their own."""
    dims = tuple(sorted((*parts[0].dims, dim)))
    labels = np.stack([part.labels for part in parts], axis=dims.index(dim))
    signs = [np.ones_like(p.labels) if p.signs is None else p.signs for p in parts]
    changed = np.stack(signs, axis=dims.index(dim))
    return Part(dims, labels, None if (changed == 1).all() else changed)


def flattened(value: Value) -> Value:
    """All axes but the first become one, where sizes are not known.

    Raises:
        UnclearError: if the value has more than one axis with coordinates.
    """
    if not value.parts:
        return Value((None,), True)
    if len(value.parts) > 1 or len(value.parts[0].dims) > 1:
        raise UnclearError
    (part,) = value.parts
    if value.repeats:
        return value
    if part.dims == (-1,):
        # A sequence, or features that are flat already: its last axis is as long as before then.
        return Value((None,), True, (part,), "outer")
    return Value((None,), True, (Part((-1,), part.labels),), "inner")
