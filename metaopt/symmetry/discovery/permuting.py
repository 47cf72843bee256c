"""Permutations: which coordinates can change places with which, all over a model at once.

A permutation of units acts on every array of coordinates that an operation runs over as a
permutation of one of its indices. So it is followed from one array to the next: units are numbered
along one index of a first array; other arrays in which these coordinates stand number one of their
indices by it, and with that the other coordinates along it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np

from metaopt.symmetry.discovery.relations import Record, Relations
from metaopt.symmetry.discovery.values import FIXED, Labels


class StuckError(Exception):
    """The units cannot be permuted; the message says why."""


@dataclass(frozen=True, eq=False)
class Seed:
    """A first numbering of units: by an index of an array, or by a part of that index.

    Attributes:
        labels: the coordinates that are numbered.
        unit: their numbers, or -1.
        count: the number of units.
        whole: the seed that numbers by the whole index, if this one does by a part of it.
    """

    labels: Labels
    unit: Labels
    count: int
    whole: Seed | None = None

    def blocks(self) -> list[Seed]:
        """The numberings of each part of the whole index alone."""
        if self.whole is None:
            return []
        number = self.whole.unit // self.count
        return [
            Seed(self.labels, np.where(number == i, self.unit, -1), self.count)
            for i in range(self.whole.count // self.count)
        ]


class Permuting:
    """Follows permutations through all records.

    Args:
        relations: the relations.
    """

    def __init__(self, relations: Relations) -> None:
        self.count = relations.count
        self.records = relations.records
        self.reasons = [stop.why for stop in relations.stops]
        self.pins = np.full(self.count, -1)
        for i, stop in reversed([*enumerate(relations.stops)]):
            if stop.fixed:
                self.pins[stop.labels] = i
        self._places = self._index()
        # Of the walk that is under way: for each label its unit, or -1.
        self._units = np.full(self.count, -1)

    def _index(self) -> tuple[Labels, Labels]:
        """Label and number of the record for all that stands in a record, sorted by label."""
        labels, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for i, record in enumerate(self.records):
            inside = np.unique(np.concatenate([x.ravel() for x, _ in record.operands]))
            inside = inside[inside != FIXED]
            labels.append(inside)
            numbers.append(np.full(len(inside), i))
        flat, record_of = np.concatenate(labels), np.concatenate(numbers)
        order = np.argsort(flat, kind="stable")
        return flat[order], record_of[order]

    def touching(self, labels: Labels) -> Labels:
        """The numbers of the records in which some coordinates stand."""
        flat, record_of = self._places
        low, high = np.searchsorted(flat, labels), np.searchsorted(flat, labels, "right")
        length = high - low
        start = np.repeat(low - np.cumsum(length) + length, length)
        found = np.zeros(len(self.records), bool)
        found[record_of[start + np.arange(len(start))]] = True
        return np.flatnonzero(found)

    def seeds(self, labels: Labels) -> Iterator[Seed]:
        """The ways in which the coordinates of an axis may be numbered, finest structure first."""
        own = np.unique(labels)
        own = own[own != FIXED]
        if not len(own):
            return
        arrays = [
            array
            for i in self.touching(own[:1])
            for array, _ in self.records[i].operands
            if own[0] in array
        ]
        if arrays and all(array.ndim == 1 for array in arrays):
            flat = labels[labels != FIXED]
            yield Seed(flat, np.arange(len(flat)), len(flat))
            return
        seen: set[tuple[int, ...]] = set()
        for array in sorted(arrays, key=lambda x: -x.ndim):
            if array.shape in seen:
                continue
            seen.add(array.shape)
            for axis, n in enumerate(array.shape):
                if n == 1 or array.ndim == 1:
                    continue
                index = np.arange(n).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
                whole = Seed(array, np.broadcast_to(index, array.shape), n)
                yield whole
                for inner in (m for m in range(2, n) if n % m == 0):
                    part = np.broadcast_to(index % inner, array.shape)
                    yield Seed(array, part, inner, whole)

    def follow(self, seed: Seed) -> tuple[Labels, Labels]:
        """All coordinates that move with a first numbering, and the unit of each.

        Raises:
            StuckError: if some operation does not allow it.
        """
        found: list[Labels] = []
        try:
            self._walk(seed, found)
            moved = np.concatenate([np.empty(0, np.int64), *found])
            return moved, self._units[moved]
        finally:
            for labels in found:
                self._units[labels] = -1

    def _walk(self, seed: Seed, found: list[Labels]) -> None:
        """Number coordinates from array to array, and note those that are numbered."""
        queue: deque[int] = deque()
        self._assign(found, queue, seed, seed.labels, seed.unit, "")
        while queue:
            record = self.records[queue.popleft()]
            for name, profile in self._profiles(record, seed.count).items():
                for array, names in record.operands:
                    if name in names:
                        shape = [-1 if n == name else 1 for n in names]
                        # A single coordinate that is broadcast stands with every unit.
                        labels, whole = np.broadcast_arrays(array, profile.reshape(shape))
                        self._assign(found, queue, seed, labels, whole, record.why)

    def _assign(
        self,
        found: list[Labels],
        queue: deque[int],
        seed: Seed,
        labels: Labels,
        unit: Labels,
        why: str,
    ) -> None:
        """Number coordinates, and queue the records in which new ones stand."""
        units = self._units
        known = np.where(labels == FIXED, -1, units[np.maximum(labels, 0)])
        if (known == unit).all() and (unit >= 0).all():
            return
        # Pairs of a coordinate and a unit, each once, by the coordinate.
        pairs = np.unique((labels * (seed.count + 1) + unit + 1).ravel())
        c, u = np.divmod(pairs, seed.count + 1)
        u -= 1
        begins = np.flatnonzero(np.diff(c, prepend=c[0] - 1))
        counts = np.diff(begins, append=len(c))
        times = np.repeat(counts, counts)
        if ((times != 1) & (times != seed.count)).any():
            raise StuckError(why)
        # A coordinate that stands with every unit stays where it is.
        moves = (u >= 0) & (times == 1)
        if (moves & (c == FIXED)).any() or (units[c[~moves & (c != FIXED)]] >= 0).any():
            raise StuckError(why)
        c, u = c[moves], u[moves]
        stuck = c[self.pins[c] >= 0]
        if len(stuck):
            raise StuckError(self.reasons[self.pins[stuck].min()])
        if ((units[c] >= 0) & (units[c] != u)).any():
            raise StuckError(why)
        fresh = c[units[c] < 0]
        units[c] = u
        found.append(fresh)
        for i in self.touching(fresh).tolist():
            if i not in queue:
                queue.append(i)

    def _profiles(self, record: Record, count: int) -> dict[Hashable, Labels]:
        """For each index of a record that the units number, the unit at each of its values."""
        found: dict[Hashable, Labels] = {}
        for array, names in record.operands:
            unit = np.where(array == FIXED, -1, self._units[np.maximum(array, 0)])
            if (unit < 0).all():
                continue
            varying = [i for i in range(unit.ndim) if (unit != unit.take([0], axis=i)).any()]
            if len(varying) != 1:
                raise StuckError(record.why)
            (axis,) = varying
            profile = unit[tuple(slice(None) if i == axis else 0 for i in range(unit.ndim))]
            times = np.bincount(profile[profile >= 0], minlength=count)
            if (times != times[0]).any() or names[axis] in record.fixed:
                raise StuckError(record.why)
            other = found.setdefault(names[axis], profile)
            if ((other != profile) & (other >= 0) & (profile >= 0)).any():
                raise StuckError(record.why)
            found[names[axis]] = np.maximum(other, profile)
        return found
