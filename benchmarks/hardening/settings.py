"""The fields of ``hardening.yaml``, and what a part of the command finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from metaopt.base.fields import Positive, Seed

T = TypeVar("T")
R = TypeVar("R")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Smoke(_Model):
    """Tiny sizes."""

    kills: Positive
    disk: Positive
    fuzz: Positive


class Hardening(_Model):
    """How much is tried.

    Attributes:
        seed: of all that is random.
        jobs: processes side by side.
        kills: training runs that are killed and resumed.
        disk: moments at which a disk is full, or a folder read-only.
        fuzz: damaged files, configurations and overrides.
        smoke: what takes the place of the last three with ``--smoke``.
    """

    seed: Seed
    jobs: Positive
    kills: Positive
    disk: Positive
    fuzz: Positive
    smoke: Smoke


@dataclass
class Found:
    """What a part of the command found.

    Attributes:
        summary: its part of the closing line.
        faults: what fell short, a line each.
    """

    summary: str
    faults: list[str] = field(default_factory=list)


def side_by_side(work: Callable[[T], R], items: Sequence[T], jobs: int, name: str) -> list[R]:
    """``work`` on all items, in threads that wait for processes; in order, under a bar."""
    with ThreadPoolExecutor(jobs) as pool:
        done = tqdm(pool.map(work, items), total=len(items), desc=name)
        return list(done)
