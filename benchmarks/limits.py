"""What is left out for taking too long or too much memory, predicted from smaller sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_SECONDS = 60.0
MAX_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Cost:
    """Of one measurement.

    Attributes:
        size: the quantity that grows, e.g. the meta-batch.
        seconds: of the smallest piece that can be timed.
        peak_bytes: of memory.
    """

    size: int
    seconds: float
    peak_bytes: float


def predicted(smaller: Sequence[Cost], size: int, power: float = 1.0) -> Cost:
    """The cost of a size from those of smaller ones, given in ascending order.

    With one known: proportional to size ** power. With two: the straight line through the last two
    (in size ** power), so that what every call costs is not multiplied.
    """
    last = smaller[-1]
    at = last.size**power
    if len(smaller) == 1:
        growth = size**power / at
        return Cost(size, growth * last.seconds, growth * last.peak_bytes)
    earlier = smaller[-2]
    share = (size**power - at) / (at - earlier.size**power)
    return Cost(
        size,
        last.seconds + share * max(0.0, last.seconds - earlier.seconds),
        last.peak_bytes + share * max(0.0, last.peak_bytes - earlier.peak_bytes),
    )


def too_much(smaller: Sequence[Cost], size: int, power: float = 1.0) -> str | None:
    """Why a size is left out, or None."""
    if not smaller:
        return None
    cost = predicted(smaller, size, power)
    if cost.seconds > MAX_SECONDS:
        return f"would take about {cost.seconds:.0f} s"
    if cost.peak_bytes > MAX_BYTES:
        return f"would take about {cost.peak_bytes / 2**30:.1f} GB"
    return None
