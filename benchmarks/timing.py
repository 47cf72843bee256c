"""Wall-clock timing that waits for the device before and after, and never in between."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

REPEATS = 3


def synchronize(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def median_seconds(
    run: Callable[[], object], device: torch.device, repeats: int = REPEATS
) -> float:
    """Of one call: the median over repeats, after one call to warm up."""
    run()
    return statistics.median(seconds(run, device) for _ in range(repeats))


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    run: Callable[[], object]  # what is timed
    units: float  # what one call is worth, e.g. trajectories


def in_turns(
    sides: Mapping[str, Side], device: torch.device, repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds a unit of each side in each of some rounds, in which each has its turn.

    One at a time, in turns, so that what else the machine does falls on all alike.

    Args:
        sides: by name.
        device: of their work.
        repeats: rounds.
        warm_up: calls of each before, which are not told.
    """
    for side in sides.values():
        for _ in range(warm_up):
            side.run()
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            measured[name].append(seconds(side.run, device) / side.units)
    return measured


def compare(
    sides: Mapping[str, Side], device: torch.device, repeats: int = REPEATS
) -> dict[str, float]:
    """Seconds a unit of each side: medians over rounds, as ``in_turns`` measures them."""
    measured = in_turns(sides, device, repeats)
    return {name: statistics.median(values) for name, values in measured.items()}
