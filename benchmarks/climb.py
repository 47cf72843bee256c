"""From small sizes to large ones, as far as time and memory allow; what is left out is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from benchmarks.limits import Cost, too_much
from benchmarks.memory import measured
from benchmarks.work import Piece

T = TypeVar("T")


@dataclass(frozen=True)
class Climbed(Generic[T]):
    """One size.

    Attributes:
        piece: what was measured.
        left_out: why it was not, or None.
        timed: what the timing gave.
        peak_bytes: of memory.
    """

    piece: Piece
    left_out: str | None = None
    timed: T | None = None
    peak_bytes: float | None = None


def climb(
    pieces: Sequence[Piece],
    time_it: Callable[[Piece], tuple[T, float]],
    device: torch.device,
    power: float = 1.0,
) -> Iterator[Climbed[T]]:
    """Memory of all pieces first, in another process, then their times.

    Args:
        pieces: sizes ascending.
        time_it: gives what is wanted, and the seconds of one piece.
        device: where.
        power: costs grow at most like this power of the size.
    """
    peaks = measured(pieces, device, power)
    costs: list[Cost] = []
    for piece in pieces:
        left_out = too_much(costs, piece.size, power)
        if piece.size not in peaks:
            left_out = too_much(list(peaks.values()), piece.size, power)
        if left_out is not None:
            yield Climbed(piece, left_out)
            continue
        timed, took = time_it(piece)
        peak = peaks[piece.size].peak_bytes
        costs.append(Cost(piece.size, took, peak))
        yield Climbed(piece, None, timed, peak)
