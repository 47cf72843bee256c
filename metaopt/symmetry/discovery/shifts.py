"""Moves of single parameters that some later function does not see.

    softmax(x + c) = softmax(x),   LayerNorm(x + c) = LayerNorm(x)   for a number c

    x / norm(x) is the same for c x, c > 0

Some parameters add the same to all entries over which such a function runs, or scale all entries:

| what                                                  | adds                     | stage      |
| ----------------------------------------------------- | ------------------------ | ---------- |
| the bias of keys, b -> b + c                          | q^T c to all scores      | ``KEYS``   |
| a layer in front of the function, W -> W + 1 v^T      | v^T x to all entries     | ``COMMON`` |
| its bias, or a vector that is added, b -> b + 1 c     | c to all entries         | ``COMMON`` |
| a table of biases of scores, one number for each head | c to all scores          | ``TABLE``  |
| a layer in front of a norm without eps, W -> c W      | (scales all entries)     | ``SCALE``  |

A value carries the shifts that it passes on. Such a function ends them. If anything else is done
with the value, or with the parameter, the shift is spoilt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from fractions import Fraction


class Stage(Enum):
    """What a shift does to the value that carries it."""

    KEYS = auto()
    """Adds one vector at all positions."""
    COMMON = auto()
    """Adds the same number to all entries along the axes ``dims``."""
    TABLE = auto()
    """Adds the same along all axes but that of heads."""
    SCALE = auto()
    """Multiplies all entries by c^degree."""


@dataclass(frozen=True)
class Shift:
    """A translation of a parameter, as a value shows it.

    Attributes:
        path: the parameter.
        began: what it was at first.
        stage: what it does to the value.
        axis: the axis of the parameter along which its entries move alike; of keys the one of the
            bias.
        places: the entries on that axis that move; None for all.
        origin: of keys, the label of the coordinate that the first entry adds to.
        degree: of scales, the power of c.
        bias: of scales, the bias that is scaled with the weight; "" if there is none.
        dims: the axes of the value along which it adds the same, counted from the end.
    """

    path: str
    began: Stage
    stage: Stage
    axis: int = 0
    places: tuple[int, ...] | None = None
    dims: tuple[int, ...] = ()
    origin: int = 0
    degree: Fraction = Fraction(1)
    bias: str = ""

    def common_along(self, dims: tuple[int, ...]) -> Shift:
        """The shift as it adds the same along axes."""
        return replace(self, stage=Stage.COMMON, dims=dims)

    def is_unseen(self, dim: int) -> bool:
        """Whether a softmax along an axis does not see it."""
        return self.stage is Stage.TABLE or (self.stage is Stage.COMMON and dim in self.dims)

    @property
    def kind(self) -> tuple[str, Stage, int]:
        """What is translated, whatever became of it and of which of its entries."""
        return self.path, self.began, self.axis

    @property
    def key(self) -> tuple[str, Stage, int, tuple[int, ...] | None]:
        """What is translated, whatever became of it."""
        return self.path, self.began, self.axis, self.places


Shifts = frozenset[Shift]
NONE: Shifts = frozenset()


def scales(shifts: Iterable[Shift], power: Fraction | int = 1) -> Shifts:
    """The scales among shifts, of what is raised to a power."""
    return frozenset(replace(s, degree=s.degree * power) for s in shifts if s.stage is Stage.SCALE)


def scales_of_product(factors: Iterable[Iterable[Shift]]) -> tuple[Shifts, Shifts]:
    """The scales of a product, and those that cancel in it."""
    degrees: dict[Shift, Fraction] = {}
    for factor in factors:
        for shift in scales(factor):
            plain = replace(shift, degree=Fraction(1))
            degrees[plain] = degrees.get(plain, Fraction(0)) + shift.degree
    kept = {replace(shift, degree=degree) for shift, degree in degrees.items() if degree}
    return frozenset(kept), frozenset(shift for shift, degree in degrees.items() if not degree)


def common(path: str, axis: int, dim: int) -> Shift:
    """The translation of a parameter along an axis that adds the same along an axis of a value."""
    return Shift(path, Stage.COMMON, Stage.COMMON, axis, dims=(dim,))
