"""Recognises rotations of pairs of coordinates by fixed angles, as rotary embeddings write them.

    y_1 = c x_1 - s x_2,   y_2 = s x_1 + c x_2

Such a rotation commutes with scales and rotations of each pair. Models write it in three ways: as
x c + (J x) s for all pairs at once, J x = (-x_2, x_1), with any order of the coordinates; as the
two sums above; or as a product of complex numbers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from metaopt.symmetry.discovery.relations import Half, Relations, Rotation
from metaopt.symmetry.discovery.values import Part, Value


def rotated(relations: Relations, summands: list[Part]) -> int | None:
    """Note that a sum is a rotation, or half of one; which summand names what comes out."""
    if len(summands) != 2 or not all(part.table for part in summands):
        return None
    if summands[0].labels.shape != summands[1].labels.shape:
        return None
    if np.isin(summands[0].labels, summands[1].labels).any():
        _at_once(relations, *sorted(summands, key=lambda part: part.signs is not None))
        return None
    return _half(relations, summands)


def _at_once(relations: Relations, straight: Part, turned: Part) -> None:
    """x c + (J x) s."""
    if turned.signs is None or straight.signs is not None:
        return
    size = straight.labels.shape[-1]
    x, y = straight.labels.reshape(-1, size), turned.labels.reshape(-1, size)
    signs = turned.signs.reshape(-1, size)
    place = {int(label): i for i, label in enumerate(x[0])}
    partner = np.array([place.get(int(label), -1) for label in y[0]])
    if (partner < 0).any() or (partner[partner] != np.arange(size)).any():
        return
    if (x[:, partner] != y).any() or (signs[:, partner] != -signs).any():
        return
    first = signs < 0
    calls = frozenset({straight.table, turned.table, relations.call})
    relations.rotations.append(Rotation(x[first], x[:, partner][first], calls))


def _half(relations: Relations, summands: list[Part]) -> int:
    """c x_1 - s x_2, or s x_1 + c x_2: the second of both completes a rotation."""
    key = frozenset(part.labels.tobytes() for part in summands)
    calls = frozenset({relations.call, *(part.table for part in summands)})
    minus = [part.signs is not None and bool((part.signs < 0).all()) for part in summands]
    other = relations.halves.pop(key, None)
    if other is None:
        # What is subtracted is x_2; if nothing is, the other half says which it is.
        low = summands[minus.index(True)].labels if sum(minus) == 1 else None
        relations.halves[key] = Half(summands[0].labels, low, calls)
        return 0
    named = 1 if np.array_equal(summands[0].labels, other.named) else 0
    low = summands[minus.index(True)].labels if sum(minus) == 1 else None
    if (low is None) == (other.low is None):
        return named
    second = other.low if low is None else low
    assert second is not None
    (first,) = (p.labels for p in summands if not np.array_equal(p.labels, second))
    rotation = Rotation(first.ravel(), second.ravel(), calls | other.calls)
    relations.rotations.append(rotation)
    return named


def as_complex(value: Value) -> Value | None:
    """Pairs along the last axis as complex numbers."""
    parts = []
    for part in value.parts:
        if part.dims[-1] != -1:
            parts.append(replace(part, dims=tuple(d + 1 for d in part.dims)))
            continue
        dims = tuple(d + 1 for d in part.dims[:-1])
        if not dims or part.signs is not None:
            return None
        parts.append(Part(dims, part.labels[..., 0], imaginary=part.labels[..., 1]))
    return Value(value.shape[:-1], value.open, tuple(parts))


def as_real(value: Value) -> Value:
    """Complex numbers as pairs along a new last axis."""
    parts = []
    for part in value.parts:
        dims = tuple(d - 1 for d in part.dims)
        if part.imaginary is None:
            parts.append(replace(part, dims=dims))
        else:
            labels = np.stack([part.labels, part.imaginary], axis=-1)
            parts.append(Part((*dims, -1), labels))
    return Value((*value.shape, 2), value.open, tuple(parts))


def multiplied(relations: Relations, value: Value, factor: Value) -> Value | None:
    """Complex numbers times fixed ones: a rotation, and a scale, of each pair."""
    if factor.parts:
        return None
    for part in value.parts:
        if part.imaginary is None:
            return None
        relations.equal(part.labels, part.imaginary)
        for labels in (part.labels, part.imaginary):
            relations.alone(labels)
        fixed = [d for d in part.dims if factor.varies(d)]
        relations.record([(part.labels, part.dims), (part.imaginary, part.dims)], fixed)
        calls = frozenset({relations.call})
        rotation = Rotation(part.labels.ravel(), part.imaginary.ravel(), calls)
        relations.rotations.append(rotation)
    return value
