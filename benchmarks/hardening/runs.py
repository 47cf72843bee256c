"""The tiny runs that are sabotaged, and whether two of them ended alike."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.hardening.victim import Plan, Victim, begun, begun_by_torchrun
from metaopt.base.checkpoint import read_state
from metaopt.meta.run_files import BEST_FILE, CONFIG_FILE, LAST_FILE, METRICS_FILE, STATE_FILE

SHAPES = ("task.width=3", "task.inputs=4", "task.outputs=2", "task.samples=3")
META = ("meta.batch=4", "meta.steps=8", "meta.unroll=3", "meta.outer_steps=12")
VALIDATION = ("validation.every=3", "validation.tasks=4")
# What it says of events that a resumption has made void is what it should do.
logging.getLogger("tensorboard").setLevel(logging.ERROR)
TIMED = ("seconds", "validation_seconds")


@dataclass(frozen=True)
class Kind:
    """A run."""

    name: str  # of the kind
    config: str  # its configuration
    overrides: tuple[str, ...]  # of it, so that it is tiny
    processes: int = 1  # that share it

    def begun(self, plan: Plan, folder: Path, log: Path) -> Victim:
        """Training in ``folder``, from the state that is there, sabotaged as planned."""
        sets = [part for override in self.overrides for part in ("--set", override)]
        given = ("--config", self.config, "--out", str(folder), "--resume", "--device", "cpu")
        begin = begun_by_torchrun if self.processes > 1 else begun
        return begin(plan, ("train", *given, *sets), log)


COORDINATE = Kind("pair", "coordinate_update_tele.yaml", (*SHAPES, *META, *VALIDATION))
DIGITS = Kind(
    "digits",
    "digits_update_tele.yaml",
    (
        "task.options={width: 4, judged: 20}",
        "task.more=[{width: 3, judged: 20}]",
        "meta.horizon={kind: random, low: 3}",
        *META,
        *VALIDATION,
    ),
)
TWO = Kind("two processes", COORDINATE.config, COORDINATE.overrides, processes=2)


def differences(folder: Path, whole: Path) -> Iterator[str]:
    """What of a run that was broken is not as in the unbroken one, bit for bit but for times."""
    for name in (BEST_FILE, LAST_FILE, CONFIG_FILE):
        if _content(folder / name) != _content(whole / name):
            yield name
    if not alike(*(_timeless(read_state(one / STATE_FILE)) for one in (folder, whole))):
        yield STATE_FILE
    if rows(folder) != rows(whole):
        yield METRICS_FILE
    wanted = {row["outer_step"]: row["meta_loss"] for row in rows(whole) if "meta_loss" in row}
    if _events(folder) != _events(whole) or _events(whole).keys() != wanted.keys():
        yield "TensorBoard events"


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics, without times and without resumptions."""
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    every = [json.loads(line) for line in lines]
    return [
        {key: value for key, value in row.items() if key not in TIMED}
        for row in every
        if "resumed_from" not in row
    ]


def alike(one: Any, other: Any) -> bool:
    """Whether two states have the same bits."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _timeless(state: dict[str, Any]) -> dict[str, Any]:
    progress = {key: value for key, value in state["progress"].items() if key not in TIMED}
    return state | {"progress": progress}


@cache
def _events(folder: Path) -> dict[int, float]:
    """What TensorBoard shows of the meta-loss."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return {event.step: event.value for event in found.Scalars("train/meta_loss")}
