"""Where on a curve which control points count, and how much.

    Bezier   w(t) = sum_i binom(n-1, i) t^i (1-t)^(n-1-i) p_i
    chain    w(t) = sum_i max(0, 1 - |t (n-1) - i|) p_i

n control points p_i, of which the first and the last are the ends of a segment. A curve through
more than two ends has one segment from each to the next, of equal lengths in t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

SNAP = 1e-12
"""How near t must be to an end to be there: k / (K - 1) times K - 1 is rounded."""

Share = tuple[int, float]
"""A control point, by its number, and its coefficient."""


def bezier(count: int, t: float) -> list[float]:
    """binom(n-1, i) t^i (1-t)^(n-1-i) for i = 0 .. n-1, which sum to 1.

    Args:
        count: n, at least 2.
        t: from 0 to 1.
    """
    n = count - 1
    return [math.comb(n, i) * t**i * (1 - t) ** (n - i) for i in range(count)]


def chain(count: int, t: float) -> list[float]:
    """max(0, 1 - |t (n-1) - i|) for i = 0 .. n-1, which sum to 1; arguments as of ``bezier``."""
    return [max(0.0, 1 - abs(t * (count - 1) - i)) for i in range(count)]


KINDS: dict[str, Callable[[int, float], list[float]]] = {"bezier": bezier, "chain": chain}
SHAPES = ("path", "star")


@dataclass(frozen=True)
class Layout:
    """Control points in a row, and the segments that they make.

    A path has its points in order: end 0, bends, end 1, bends, .. A star has its ends first and its
    centre last; its segments go from each end to the next by way of the centre.

    Attributes:
        kind: ``bezier`` or ``chain``.
        bends: control points between two ends; of a star 1, which all segments share.
        shape: ``path`` or ``star``.
        ends: K, the number of ends.

    Raises:
        ValueError: if kind or shape are unknown, there are fewer than two ends, or a star is asked
            for arms that are not straight.
    """

    kind: str
    bends: int
    shape: str
    ends: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, found {self.kind!r}")
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, found {self.shape!r}")
        if self.ends < 2:
            raise ValueError(f"models must be two or more, found {self.ends}")
        if self.bends < 0:
            raise ValueError(f"bends must not be negative, found {self.bends}")
        if self.shape == "star" and (self.kind, self.bends) != ("chain", 1):
            raise ValueError(
                f"a star has straight arms: give kind='chain' and bends=1, found "
                f"kind={self.kind!r} and bends={self.bends}"
            )

    @property
    def count(self) -> int:
        """The number of control points."""
        if self.shape == "star":
            return self.ends + 1
        return self.ends + (self.ends - 1) * self.bends

    @property
    def end_rows(self) -> list[int]:
        """The control points that are ends, in order."""
        if self.shape == "star":
            return list(range(self.ends))
        return [k * (self.bends + 1) for k in range(self.ends)]

    @property
    def bend_rows(self) -> list[int]:
        """The control points that are trained."""
        ends = set(self.end_rows)
        return [row for row in range(self.count) if row not in ends]

    def start(self, row: int) -> list[Share]:
        """Where a trained point starts: on its segment; the centre of a star in the mean of ends.

        Returns:
            Numbers of ends, from 0, and their coefficients.
        """
        if self.shape == "star":
            return [(end, 1 / self.ends) for end in range(self.ends)]
        segment, place = divmod(row, self.bends + 1)
        x = place / (self.bends + 1)
        return [(segment, 1 - x), (segment + 1, x)]

    def segment(self, number: int) -> list[int]:
        """The control points from end ``number`` to the next."""
        if self.shape == "star":
            return [number, self.ends, number + 1]
        return list(range(number * (self.bends + 1), (number + 1) * (self.bends + 1) + 1))

    def between(self, t: float) -> tuple[int, float]:
        """The segment in which t lies, and how far along it, from 0 to 1.

        Raises:
            ValueError: if t is not from 0 to 1.
        """
        return between(self.ends, t)

    def at(self, t: float) -> list[Share]:
        """The control points that count at t, from 0 to 1; at an end the end alone."""
        number, x = self.between(t)
        rows = self.segment(number)
        if x in (0, 1):
            return [(rows[-1 if x else 0], 1.0)]
        return _nonzero(rows, KINDS[self.kind](len(rows), x))

    def drawn(self, u: float) -> list[Share]:
        """The control points that count where a uniform random number lands, from 0 to 1.

        On a path that is ``at(u)``. On a star u runs along each arm once, and not twice along those
        that two segments share.
        """
        if self.shape == "path":
            return self.at(u)
        arm = min(int(u * self.ends), self.ends - 1)
        x = u * self.ends - arm
        return _nonzero([self.ends, arm], [1 - x, x])


def between(ends: int, t: float) -> tuple[int, float]:
    """The segment of a curve with so many ends in which t lies, and how far along it.

    Raises:
        ValueError: if t is not from 0 to 1.
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t must be from 0 to 1, found {t}")
    scaled = t * (ends - 1)
    number = min(int(scaled + SNAP), ends - 2)
    x = scaled - number
    return number, float(round(x)) if abs(x - round(x)) <= SNAP else x


def _nonzero(rows: list[int], coefficients: list[float]) -> list[Share]:
    return [(row, c) for row, c in zip(rows, coefficients, strict=True) if c != 0]
