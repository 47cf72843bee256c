"""Seconds a trajectory, share of the matmul rate and peak memory, by meta-batch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.climb import climb
from benchmarks.counting import evaluation_flop, training_flop
from benchmarks.timing import REPEATS, seconds
from benchmarks.work import Piece, Work
from metaopt.base.tables import markdown_table

BUDGET = 2.0
"""Seconds that the repeats of one measurement may take, if a window of each does not."""


@dataclass(frozen=True)
class Row:
    """One configuration at one meta-batch.

    Attributes:
        label: its file, and what was set.
        mode: meta-training or evaluation.
        batch: trajectories side by side.
        left_out: why there are no figures, or None.
        windows: in the trajectories that were timed.
        seconds: for one trajectory of full length (100 steps by default).
        flop: of the networks in one trajectory.
        share: of the machine's matmul rate.
        peak_bytes: of memory.
    """

    label: str
    mode: str
    batch: int
    left_out: str | None = None
    windows: int | None = None
    seconds: float | None = None
    flop: int | None = None
    share: float | None = None
    peak_bytes: float | None = None


def windows_within(budget: float, window_seconds: float, most: int) -> int:
    """How many windows a repeat may have."""
    return max(1, min(most, int(budget / (REPEATS * window_seconds))))


def trajectory_seconds(
    work: Work, device: torch.device, budget: float = BUDGET
) -> tuple[float, float, int]:
    """(for one trajectory of full length, of one window of all, windows a repeat)."""
    run = work.ready(1, device)
    run()
    window = seconds(run, device)
    full = work.windows_of_trajectory
    windows = windows_within(budget, window, full)
    if windows > 1:
        run = work.ready(windows, device)
    measurements = [seconds(run, device) for _ in range(REPEATS)]
    median = statistics.median(measurements)
    window = min(window, min(measurements) / windows)
    return median * full / (windows * work.batch), window, windows


def scaling(
    works: Sequence[Work], device: torch.device, matmul_flops: float, budget: float = BUDGET
) -> Iterator[Row]:
    """A row for each of one configuration and mode, meta-batches ascending."""

    def time_it(piece: Piece) -> tuple[tuple[float, int], float]:
        per_trajectory, window, windows = trajectory_seconds(piece.work, device, budget)
        return (per_trajectory, windows), window

    pieces = [Piece(work.batch, work) for work in works]
    for reached in climb(pieces, time_it, device):
        work = reached.piece.work
        row = Row(work.label, work.mode, work.batch, reached.left_out)
        if reached.timed is None:
            yield row
            continue
        count = training_flop if work.mode == "meta-training" else evaluation_flop
        flop, (per_trajectory, windows) = count(work.loaded()), reached.timed
        yield replace(
            row,
            windows=windows,
            seconds=per_trajectory,
            flop=flop,
            share=flop / per_trajectory / matmul_flops,
            peak_bytes=reached.peak_bytes,
        )


HEADER = ["configuration", "mode", "B", "s/trajectory", "GFLOP", "share", "peak MB", "windows"]


def cells(row: Row) -> list[str]:
    """A row of the table."""
    start = [row.label, row.mode, str(row.batch)]
    if row.seconds is None or row.flop is None or row.share is None or row.peak_bytes is None:
        return [*start, f"left out: {row.left_out}", "", "", "", ""]
    return [
        *start,
        f"{row.seconds:.4g}",
        f"{row.flop / 1e9:.2f}",
        f"{100 * row.share:.0f} %",
        f"{row.peak_bytes / 1e6:.0f}",
        str(row.windows),
    ]


def table(rows: Sequence[Row]) -> str:
    """For people."""
    return markdown_table(HEADER, [cells(row) for row in rows])


def as_dicts(rows: Sequence[Row]) -> list[Mapping[str, object]]:
    """For JSON."""
    return [vars(row) for row in rows]
