"""Sums of products over common indices: ``linear``, ``matmul``, ``einsum``, attention.

z[o] = sum_i x[.., i] y[i, ..]:   s_x[i] + s_y[i] = 0, and the coordinates i may be mixed
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from metaopt.symmetry.discovery.algebra import product, together
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.shifts import scales_of_product
from metaopt.symmetry.discovery.values import Labels, Part, Value

Names = tuple[Hashable, ...]
"""The name of the index along each axis of a tensor."""


@dataclass(frozen=True, eq=False)
class _Named:
    """A part, with names of indices in place of axes."""

    names: Names
    labels: Labels

    def over(self, names: Sequence[Hashable]) -> Labels:
        """The labels with an axis for each of ``names``, of length 1 where the part has none."""
        held = [n for n in names if n in self.names]
        array = self.labels.transpose([self.names.index(n) for n in held])
        sizes = iter(array.shape)
        return array.reshape([next(sizes) if n in self.names else 1 for n in names])


def contract(
    relations: Relations,
    values: Sequence[Value],
    names: Sequence[Names],
    out: Names,
    is_open: bool = False,
) -> Value:
    """The sum over all indices that are not in ``out`` of the product of one or two tensors.

    Args:
        relations: where the demands are written.
        values: the tensors.
        names: for each the names of its indices.
        out: the names of the result's indices.
        is_open: whether there may be more axes before those of the result.
    """
    named = [
        [_Named(tuple(own[d] for d in part.dims), part.labels) for part in value.parts]
        for value, own in zip(values, names, strict=True)
    ]
    sizes = _sizes(values, names)
    varying = {
        name
        for value, own in zip(values, names, strict=True)
        for d, name in zip(range(-len(own), 0), own, strict=True)
        if value.varies(d)
    }
    left: list[_Named] = []
    operands = [(part.labels, part.names) for parts in named for part in parts]
    summed = {name for own in names for name in own} - set(out)
    for value, parts in zip(values, named, strict=True):
        if value.weight:
            relations.read += [part.labels for part in parts if summed & set(part.names)]
    over = [part for parts in named for part in parts if summed & set(part.names)]
    for pair in together(over, lambda part: summed & set(part.names)):
        left += _summed(relations, pair, summed, varying)
    left += [p for parts in named for p in parts if not summed & set(p.names)]
    results = _joined(relations, left, out, sizes, varying)
    operands += [(part.labels, part.names) for part in results]
    relations.record(operands, tuple(varying))
    place = {name: i - len(out) for i, name in enumerate(out)}
    placed = []
    for result in results:
        order = sorted(result.names, key=lambda n: place[n])
        placed.append(Part(tuple(place[n] for n in order), result.over(order)))
    kept, cancelled = scales_of_product(value.shifts for value in values)
    relations.ending |= cancelled
    shape = tuple(sizes.get(name) for name in out)
    return Value(shape, is_open, tuple(placed), shifts=kept)


def _sizes(values: Sequence[Value], names: Sequence[Names]) -> dict[Hashable, int | None]:
    """The size of each index; an axis of length 1 is broadcast."""
    sizes: dict[Hashable, int | None] = {}
    for value, own in zip(values, names, strict=True):
        for d, name in zip(range(-len(own), 0), own, strict=True):
            n = value.size(d)
            if sizes.get(name, 1) == 1:
                sizes[name] = n
    return sizes


def _summed(
    relations: Relations, parts: list[_Named], summed: set[Hashable], varying: set[Hashable]
) -> list[_Named]:
    """State what a sum demands of the parts; return what is left of them, which has no scale."""
    names = tuple(dict.fromkeys(n for part in parts for n in part.names))
    kept = tuple(n for n in names if n not in summed)
    over = {frozenset(summed & set(part.names)) for part in parts}
    if len(parts) == 2 and len(over) == 1 and not varying & next(iter(over)):
        first, second = (part.over(names) for part in parts)
        relations.equal(
            first, second, -1, f"what {relations.said} does with it depends on the place"
        )
        for part in parts:
            relations.mix(part.labels, [i for i, n in enumerate(part.names) if n not in summed])
        why = f"only permutations pass {relations.said}"
    else:
        why = f"{relations.said} sums over it with something that does not move"
        for part in parts:
            relations.stop(part.labels, why)
            relations.alone(part.labels)
    if not kept:
        return []
    labels = relations.new(
        [max(p.labels.shape[p.names.index(n)] for p in parts if n in p.names) for n in kept]
    )
    relations.stop(labels, why)
    return [_Named(kept, labels)]


def _joined(
    relations: Relations,
    left: list[_Named],
    out: Names,
    sizes: dict[Hashable, int | None],
    varying: set[Hashable],
) -> list[_Named]:
    """The parts of the result: products of those parts that share an index."""
    results = []
    for group in together(left, lambda part: set(part.names)):
        if len(group) == 1:
            (part,) = group
            fixed = [i for i, n in enumerate(part.names) if n in varying]
            if fixed:
                relations.mix(part.labels, fixed)
            shape = tuple(sizes[n] or part.labels.shape[i] for i, n in enumerate(part.names))
            labels = np.broadcast_to(part.labels, np.broadcast_shapes(part.labels.shape, shape))
            results.append(_Named(part.names, labels))
            continue
        names = tuple(n for n in out if any(n in part.names for part in group))
        results.append(_Named(names, product(relations, names, group)))
    return results
