"""The fields of ``hardening.yaml``, and what a part of the command finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from tqdm import tqdm

from metaopt.base.fields import Model, Positive, Seed, required

T = TypeVar("T")
R = TypeVar("R")


class Smoke(Model):
    """Tiny sizes."""

    kills: Positive
    disk: Positive
    fuzz: Positive


class Hardening(Model):
    """How much is tried."""

    seed: Seed = required("of all that is random")
    jobs: Positive = required("processes side by side")
    kills: Positive = required("training runs that are killed and resumed")
    disk: Positive = required("moments at which a disk is full, or a folder read-only")
    fuzz: Positive = required("damaged files, configurations and overrides")
    smoke: Smoke = required("what takes the place of the last three with --smoke")


@dataclass
class Found:
    """What a part of the command found."""

    summary: str  # its part of the closing line
    faults: list[str] = field(default_factory=list)  # what fell short, a line each


def side_by_side(work: Callable[[T], R], items: Sequence[T], jobs: int, name: str) -> list[R]:
    """``work`` on all items, in threads that wait for processes; in order, under a bar."""
    with ThreadPoolExecutor(jobs) as pool:
        done = tqdm(pool.map(work, items), total=len(items), desc=name)
        return list(done)
