"""What operations demand of the coordinates of a model: equations that every symmetry must satisfy.

Each coordinate has a label. A symmetry scales the coordinate with label a by exp(s_a) and changes
its sign by (-1)^e_a. Rules for operations state:

    s_a = s_b or s_a = -s_b            the coordinate passes, or is summed over with another
    s_a = 0,  e_a = 0                  no scale passes, or no change of sign
    s_c = p s_a + q s_b                products and powers

They state which coordinates may be mixed by a matrix (``fibers``: a contraction lets those of one
fibre be mixed, a function of each coordinate alone none), and in which arrays coordinates stand
side by side, for permutations (``records``). ``discovery.solving`` finds what satisfies all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from metaopt.symmetry.discovery.shifts import Shift
from metaopt.symmetry.discovery.values import FIXED, Labels

Operand = tuple[Labels, tuple[Hashable, ...]]
"""An array of labels, and the name of the index along each of its axes."""


@dataclass(frozen=True, eq=False)
class Source:
    """The coordinates along one axis of a parameter, or of a part of it.

    Attributes:
        path: the parameter's path.
        axis: the axis.
        labels: the coordinates' labels, along the axis.
        rows: (start, length) on axis 0 if only these rows belong to it.
        groups: as in ``Slot``.
        order: when it was used first: the number of the call.
    """

    path: str
    axis: int
    labels: Labels
    rows: tuple[int, int] | None = None
    groups: int = 1
    order: int = 0


@dataclass(frozen=True, eq=False)
class Equal:
    """s_a = sign s_b, and the same change of sign and permutation; stated by a call of a number."""

    a: Labels
    b: Labels
    sign: int
    call: int = 0


@dataclass(frozen=True, eq=False)
class Product:
    """s_c = p s_a + q s_b; the change of sign likewise, modulo 2.

    ``gains`` is the path of the parameter that b stands for, if that has one axis.
    """

    c: Labels
    a: Labels
    b: Labels
    p: int = 1
    q: int = 1
    gains: str = ""


@dataclass(frozen=True, eq=False)
class Stop:
    """Coordinates that may not be scaled (``scale``), or not change sign (``sign``), and why."""

    labels: Labels
    why: str
    scale: bool = True
    sign: bool = True
    fixed: bool = False
    """Whether permutations stop here as well."""


@dataclass(frozen=True, eq=False)
class Fibers:
    """Coordinates may be mixed with those of the same fibre alone.

    Attributes:
        labels: the coordinates.
        fiber: the number of each one's fibre.
        call: the number of the call that demands it.
        gains: the path of the parameter that would have to have equal entries for any mixing; ""
            if it is none.
    """

    labels: Labels
    fiber: Labels
    call: int
    gains: str = ""


@dataclass(frozen=True, eq=False)
class Record:
    """Arrays of coordinates that one operation runs over with common indices.

    A permutation of coordinates must be a permutation of indices here, the same in all arrays, and
    leave the indices in ``fixed`` alone.
    """

    operands: tuple[Operand, ...]
    fixed: frozenset[Hashable]
    why: str


@dataclass(frozen=True, eq=False)
class Rotation:
    """Pairs of coordinates that an operation rotates: y = (c + s J) x, J x = (-x_2, x_1).

    Attributes:
        first: the first coordinate of each pair.
        second: the second.
        calls: the numbers of the calls that make up the rotation, which forbid other mixing.
    """

    first: Labels
    second: Labels
    calls: frozenset[int]


@dataclass(frozen=True, eq=False)
class Half:
    """The first of two sums that may make up a rotation.

    Attributes:
        named: the coordinates by which what comes out is named.
        low: those that were subtracted; None if none were.
        calls: the numbers of its calls.
    """

    named: Labels
    low: Labels | None
    calls: frozenset[int]


@dataclass(eq=False)
class Relations:
    """All relations that the flows of a model state; rules add to it.

    Attributes:
        call: the number of the call whose rule is running.
        said: how messages name that call's operation.
        module: the path of the module in which it is.
        because: why an input of that call does not move, if that explains what its rule demands.
    """

    count: int = 0
    call: int = 0
    said: str = ""
    because: str = ""
    module: str = ""
    sources: list[Source] = field(default_factory=list)
    equals: list[Equal] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    mirrors: list[Stop] = field(default_factory=list)
    """Norms, which stop scales for another reason than functions of single coordinates."""
    fibers: list[Fibers] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    rotations: list[Rotation] = field(default_factory=list)
    halves: dict[frozenset[bytes], Half] = field(default_factory=dict)
    indexed: bool = False
    """Whether an axis of an input was taken away, so that images may not come in batches."""
    read: list[Labels] = field(default_factory=list)
    """Coordinates of parameters that were summed over: such a parameter reads a hidden space."""
    factors: list[Labels] = field(default_factory=list)
    """Coordinates of parameters with which the entries of a hidden space were multiplied."""
    ended: set[Shift] = field(default_factory=set)
    """Translations that a softmax did not see."""
    ending: set[Shift] = field(default_factory=set)
    """Those of the call whose rule is running."""
    spoilt: set[tuple[object, ...]] = field(default_factory=set)
    """The keys of those that something else saw."""
    equal_gains: set[str] = field(default_factory=set)
    """The paths of parameters with one axis of which all entries are equal."""
    used: set[str] = field(default_factory=set)
    """The paths of parameters of which something was computed that translations would change."""
    assumptions: list[tuple[Labels, str]] = field(default_factory=list)
    """Coordinates, and what is assumed where they pass."""

    def new(self, shape: Sequence[int]) -> Labels:
        """Labels of new coordinates."""
        size = int(np.prod(shape, dtype=np.int64))
        labels = np.arange(self.count, self.count + size, dtype=np.int64).reshape(tuple(shape))
        self.count += size
        return labels

    def equal(self, a: Labels, b: Labels, sign: int = 1, why: str = "") -> None:
        """s_a = sign s_b, broadcast; an entry without a label stops its partner."""
        a, b = (x.ravel() for x in np.broadcast_arrays(a, b))
        known = (a != FIXED) & (b != FIXED)
        if not known.all():
            lone = np.where(a != FIXED, a, b)[~known]
            self.fix(lone[lone != FIXED], why)
        if known.any():
            self.equals.append(Equal(a[known], b[known], sign, self.call))

    def mirror(self, labels: Labels) -> None:
        """s_a = -s_a, as in a norm: no scale passes, but rotations do."""
        flat = labels[labels != FIXED].ravel()
        place = f"the norm '{self.module}'" if self.module else self.said
        self.mirrors.append(Stop(flat, f"only signs and rotations pass {place}"))

    def product(
        self, c: Labels, a: Labels, b: Labels, p: int = 1, q: int = 1, gains: str = ""
    ) -> None:
        """s_c = p s_a + q s_b, broadcast; an entry without a label counts as 0."""
        c, a, b = (x.ravel() for x in np.broadcast_arrays(c, a, b))
        self.products.append(Product(c, a, b, p, q, gains))

    def stop(self, labels: Labels, why: str, *, scale: bool = True, sign: bool = True) -> None:
        """s = 0 or e = 0, or both."""
        labels = labels[labels != FIXED]
        if labels.size:
            self.stops.append(Stop(labels.ravel(), self.because or why, scale, sign))

    def curved(self, labels: Labels, odd: bool = False) -> None:
        """Functions of one coordinate that commute with no scale; odd ones do with its sign."""
        passing = "changes of sign and permutations" if odd else "permutations"
        self.stop(labels, f"only {passing} pass {self.said}", sign=not odd)
        self.alone(labels)

    def fix(self, labels: Labels, why: str) -> None:
        """Neither scale, nor sign, nor permutations, nor mixing."""
        labels = labels[labels != FIXED]
        if labels.size:
            self.stops.append(Stop(labels.ravel(), self.because or why, fixed=True))
            self.alone(labels)

    def alone(self, labels: Labels) -> None:
        """No coordinate is mixed with another."""
        self.mix(labels, tuple(range(labels.ndim)))

    def mix(self, labels: Labels, apart: Sequence[int], gains: str = "") -> None:
        """Coordinates are mixed along all axes of an array but those in ``apart``."""
        shape = [n if i in apart else 1 for i, n in enumerate(labels.shape)]
        fiber = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
        fiber = np.broadcast_to(fiber, labels.shape)
        kept = labels != FIXED
        self.fibers.append(Fibers(labels[kept], fiber[kept], self.call, gains))

    def record(
        self, operands: Sequence[Operand], fixed: Sequence[Hashable] = (), why: str = ""
    ) -> None:
        """Arrays that the operation runs over together."""
        kept = tuple((labels, names) for labels, names in operands if labels.size)
        if kept:
            why = why or f"what {self.said} does with its output depends on the place"
            self.records.append(Record(kept, frozenset(fixed), why))
