"""Where the coordinates of hidden spaces lie in a tensor.

A tensor that flows through a model has a value here: its sizes, and parts. A part says for the
indices along some of its axes which coordinate stands there, by the coordinate's label, an integer.
A group acts on coordinates: an entry of the tensor is multiplied by what the group does to the
coordinate of each part that it belongs to. Along axes of no part (batches, positions, inputs of the
model) nothing can move.

Moving data about (views, slices, concatenations) moves labels about in the same way, so that no
rule has to know what a view means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from metaopt.symmetry.discovery.shifts import NONE, Shifts

Labels = npt.NDArray[np.int64]
FIXED = -1
"""The label of an entry that no group may move."""


@dataclass(frozen=True, eq=False)
class Part:
    """Which coordinate stands at each index along some axes of a tensor.

    Attributes:
        dims: the axes, counted from the end and so negative, ascending.
        labels: the coordinate's label, int64, an axis for each of ``dims``.
        signs: 1 or -1: whether the coordinate stands there with its sign changed.
        table: the number of the call that multiplied each coordinate by a fixed factor of its own;
            0 if none did.
        imaginary: of complex numbers, the coordinates of the imaginary parts; ``labels`` are then
            those of the real parts.
    """

    dims: tuple[int, ...]
    labels: Labels
    signs: Labels | None = None
    table: int = 0
    imaginary: Labels | None = None

    @property
    def names(self) -> tuple[int, ...]:
        """What its axes are called: their numbers."""
        return self.dims

    def over(self, dims: Sequence[int]) -> Labels:
        """The labels with an axis for each of ``dims``, of length 1 where the part has none."""
        sizes = dict(zip(self.dims, self.labels.shape, strict=True))
        return self.labels.reshape([sizes.get(d, 1) for d in dims])


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of a tensor that flows through a model.

    Attributes:
        shape: its sizes, None where a size is unknown.
        open: whether there may be more axes before those of ``shape``.
        parts: where coordinates lie; no axis belongs to two parts.
        repeats: "inner" or "outer" if the last axis, of unknown length, is a flattened image or a
            flattened sequence: the labels of the part on it are those of one position, and each
            label, or all of them, are repeated for the positions.
        gains: the path of the parameter with one axis that it is, up to functions of single
            entries; else "".
        weight: whether it is a parameter, or a view of one.
        even: axes, counted from the end, along which all entries are equal although there are
            several, as in a tensor of zeros.
        zero: whether all its entries are 0.
        shifts: moves of single parameters that it passes on; see ``discovery.shifts``.
    """

    shape: tuple[int | None, ...]
    open: bool = False
    parts: tuple[Part, ...] = ()
    repeats: str = ""
    gains: str = ""
    weight: bool = False
    even: frozenset[int] = frozenset()
    zero: bool = False
    shifts: Shifts = NONE

    def size(self, dim: int) -> int | None:
        """The size of an axis, counted from the end; 1 if it would be broadcast along it."""
        if -dim <= len(self.shape):
            return self.shape[dim]
        return None if self.open else 1

    def part_on(self, dim: int) -> Part | None:
        """The part that has an axis, or None."""
        return next((part for part in self.parts if dim in part.dims), None)

    def varies(self, dim: int) -> bool:
        """Whether entries may differ along an axis for which no coordinates are known."""
        return self.part_on(dim) is None and self.size(dim) != 1 and dim not in self.even

    @property
    def labels(self) -> Labels:
        """All labels of all parts, flat."""
        if not self.parts:
            return np.empty(0, np.int64)
        arrays = [x for p in self.parts for x in (p.labels, p.imaginary) if x is not None]
        return np.concatenate([x.ravel() for x in arrays])

    @property
    def is_complex(self) -> bool:
        """Whether it has coordinates of complex numbers, which few rules know."""
        return any(part.imaginary is not None for part in self.parts)

    def with_shape(self, shape: tuple[int | None, ...] | None) -> Value:
        """The value with the sizes that a run saw, if it saw them."""
        return self if shape is None else replace(self, shape=shape, open=False)

    def is_even(self, dim: int) -> bool:
        """Whether all entries along an axis are equal."""
        return self.part_on(dim) is None and not self.varies(dim)


def number() -> Value:
    """The value of a number, which is broadcast along all axes."""
    return Value(())
