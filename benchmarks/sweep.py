"""Time and memory of meta-training and evaluation from small sizes to large ones: one way for all.

A trajectory has 100 steps. Where ten windows of all trajectories take too long, trajectories of
fewer windows are timed, each with its draw of tasks, and their time is scaled up. What would take
over 60 s or 4 GB, predicted from the sizes before it, is left out by name; memory that metaopt
holds down by itself (``meta.group``) is measured, whatever smaller sizes foretell.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from benchmarks.timing import REPEATS, seconds
from metaopt.base.config import load
from metaopt.meta.config import TrainConfig
from metaopt.meta.groups import ALWAYS_WHOLE
from metaopt.meta.trainer import MetaTrainer
from studies.output import ROOT

Mode = Literal["meta-training", "evaluation"]
WHOLE = ("meta.horizon={kind: fixed}", "meta.compile=never")
"""Trajectories of full length, so that as many windows are as much work; as the code stands."""
BUDGET = 2.0
"""Seconds that the repeats of one measurement may take, if a window of each does not."""
MAX_SECONDS = 60.0
MAX_BYTES = 4 * 2**30
LEAST_SLOPE = 0.01
"""Of costs that grow in proportion to the size: what a prediction assumes at least."""


@dataclass(frozen=True)
class Work:
    """One configuration at one meta-batch."""

    config: str  # its file
    mode: Mode  # meta-training (outer steps) or evaluation (rollouts without a graph)
    batch: int  # trajectories side by side
    overrides: tuple[str, ...] = ()  # further ``key.sub=value``

    @property
    def label(self) -> str:
        """For tables: the file, and what was set."""
        return " ".join([self.config.removesuffix(".yaml"), *self.overrides])

    def loaded(self, extra: Sequence[str] = ()) -> TrainConfig:
        """The configuration."""
        own, other = "meta.batch", "validation.tasks"
        if self.mode == "evaluation":
            own, other = other, own
        # The other side of the run is made small, since a trainer always has both.
        sizes = (f"{own}={self.batch}", f"{other}=1")
        return load(TrainConfig, self.config, [*WHOLE, *self.overrides, *sizes, *extra])

    def in_groups(self, device: torch.device) -> bool:
        """Whether windows go through in groups that hold memory down (``meta.group``)."""
        return self.mode == "meta-training" and device.type == "cpu" and self.batch > ALWAYS_WHOLE

    @property
    def windows_of_trajectory(self) -> int:
        """How many windows a trajectory has."""
        meta = self.loaded().meta
        return -(-meta.steps // meta.unroll)

    def ready(self, windows: int, device: torch.device) -> Callable[[], object]:
        """What runs a trajectory of ``windows`` windows of all ``batch`` trajectories."""
        steps = windows * self.loaded().meta.unroll
        trainer = MetaTrainer(self.loaded([f"meta.steps={steps}"]), device)
        if self.mode == "evaluation":
            return trainer.validate

        def train() -> None:
            for _ in range(windows):
                trainer.outer_step()

        return train


@dataclass(frozen=True)
class Piece:
    """As much work as one measurement takes at least."""

    size: int  # what grows from piece to piece, e.g. the meta-batch
    work: Work  # what is done
    windows: int = 1  # how many of it; a timing may take more


@dataclass(frozen=True)
class Row:
    """What was measured of one piece."""

    label: str  # its file, and what was set
    mode: str  # meta-training or evaluation
    batch: int  # trajectories side by side
    size: int  # of the piece
    steps: int  # of a trajectory of full length
    left_out: str | None = None  # why there are no figures, or None
    windows: int = 0  # in the trajectories that were timed
    seconds: float = 0.0  # for one trajectory of full length
    peak_bytes: float = 0.0  # of memory


@dataclass(frozen=True)
class Cost:
    """Of one piece."""

    size: int  # of the piece
    seconds: float  # of it
    peak_bytes: float  # of memory


def predicted(smaller: Sequence[Cost], size: int, power: float = 1.0) -> Cost:
    """The cost of a size from those of smaller ones, given in ascending order.

    With one known: proportional to size ** power. With two: the straight line through the last two
    (in size ** power), so that what every call costs is not multiplied; of a slope that is at least
    ``LEAST_SLOPE`` of the proportional one, since of two small sizes the larger now and then takes
    less time than the smaller.
    """
    last = smaller[-1]
    at = last.size**power
    if len(smaller) == 1:
        growth = size**power / at
        return Cost(size, growth * last.seconds, growth * last.peak_bytes)
    earlier = smaller[-2]

    def at_size(of_last: float, of_earlier: float) -> float:
        slope = (of_last - of_earlier) / (at - earlier.size**power)
        return of_last + max(slope, LEAST_SLOPE * of_last / at) * (size**power - at)

    return Cost(
        size,
        at_size(last.seconds, earlier.seconds),
        at_size(last.peak_bytes, earlier.peak_bytes),
    )


def too_much(
    smaller: Sequence[Cost], size: int, power: float = 1.0, in_groups: bool = False
) -> str | None:
    """Why a size is left out, or None.

    Args:
        smaller: the costs of smaller ones, ascending.
        size: of the piece.
        power: see ``predicted``.
        in_groups: whether memory is held down, so that smaller sizes do not foretell it.
    """
    if not smaller:
        return None
    cost = predicted(smaller, size, power)
    if cost.seconds > MAX_SECONDS:
        return f"would take about {cost.seconds:.0f} s"
    if cost.peak_bytes > MAX_BYTES and not in_groups:
        return f"would take about {cost.peak_bytes / 2**30:.1f} GB"
    return None


def windows_within(budget: float, window_seconds: float, most: int) -> int:
    """How many windows a repeat may have."""
    return max(1, min(most, int(budget / (REPEATS * window_seconds))))


def trajectory_seconds(
    piece: Piece, device: torch.device, budget: float = BUDGET
) -> tuple[float, float, int]:
    """(for one trajectory of full length, of one window of all, windows a repeat)."""
    work, full = piece.work, piece.work.windows_of_trajectory
    run = work.ready(1, device)
    run()
    window = seconds(run, device)
    windows = max(piece.windows, windows_within(budget, window, full))
    if windows > 1:
        run = work.ready(windows, device)
    measurements = [seconds(run, device) for _ in range(REPEATS)]
    median = statistics.median(measurements)
    window = min(window, min(measurements) / windows)
    return median * full / (windows * work.batch), window, windows


def measured(pieces: Sequence[Piece], device: torch.device, power: float = 1.0) -> dict[int, Cost]:
    """Cost by size, from a fresh process (``benchmarks.memory``); without sizes past the limits."""
    order = {"device": str(device), "power": power, "pieces": [asdict(piece) for piece in pieces]}
    lines = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"],
        input=json.dumps(order),
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)},
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.splitlines()
    costs = [Cost(**json.loads(line)) for line in lines]
    return {cost.size: cost for cost in costs}


def sweep(
    pieces: Sequence[Piece], device: torch.device, power: float = 1.0, budget: float = BUDGET
) -> Iterator[Row]:
    """A row for each piece: memory of all first, in another process, then their times.

    Args:
        pieces: sizes ascending.
        device: where.
        power: costs grow at most like this power of the size.
        budget: seconds that the repeats of one timing may take, if a piece of each does not.
    """
    peaks = measured(pieces, device, power)
    costs: list[Cost] = []
    for piece in pieces:
        known = costs if piece.size in peaks else list(peaks.values())
        work, left_out = (
            piece.work,
            too_much(known, piece.size, power, piece.work.in_groups(device)),
        )
        steps = work.loaded().meta.steps
        row = Row(work.label, work.mode, work.batch, piece.size, steps, left_out)
        if row.left_out is None:
            each, window, windows = trajectory_seconds(piece, device, budget)
            peak = peaks[piece.size].peak_bytes
            costs.append(Cost(piece.size, piece.windows * window, peak))
            row = replace(row, windows=windows, seconds=each, peak_bytes=peak)
        yield row
