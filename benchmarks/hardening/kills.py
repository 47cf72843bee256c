"""Training runs that are killed with SIGKILL and resumed end as the unbroken one.

Each is killed up to three times: at a random moment of its life, or within a random operation on a
file (``saboteur``); then it is left to end.
"""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.hardening.runs import COORDINATE, DIGITS, TWO, Kind, differences
from benchmarks.hardening.settings import Found, Hardening, side_by_side
from benchmarks.hardening.victim import Plan, Victim, errors_of

PATIENCE = 120.0
"""Seconds that a tiny run may take."""
MOST_KILLS = 3
BETWEEN_STATES = (0.0, 0.05)
MIXTURE = (COORDINATE, DIGITS, TWO, *[COORDINATE, DIGITS] * 4)


@dataclass(frozen=True)
class Whole:
    """The unbroken run of a kind."""

    folder: Path  # of the run
    seconds: float  # it took
    operations: int  # on files that it made, with a state after each outer step


@dataclass(frozen=True)
class Broken:
    """A run that was killed: how often, how often in the midst of a file, and what is wrong."""

    kills: int
    in_writing: int
    fault: str | None


def kills(settings: Hardening, folder: Path) -> Found:
    """Kill and resume as many runs as ``settings`` say."""
    kinds = [MIXTURE[i % len(MIXTURE)] for i in range(settings.kills)]
    present = list(dict.fromkeys(kinds))
    found = side_by_side(partial(_whole, folder), present, settings.jobs, "unbroken runs")
    whole = dict(zip(present, found, strict=True))

    def broken(i: int) -> Broken:
        draw = random.Random(f"{settings.seed} {i}")
        return _broken(kinds[i], whole[kinds[i]], folder / f"run{i}", draw)

    done = side_by_side(broken, range(settings.kills), settings.jobs, "killed runs")
    faults = [f"run {i}, {kinds[i].name}: {one.fault}" for i, one in enumerate(done) if one.fault]
    good, times = len(done) - len(faults), sum(one.kills for one in done)
    in_writing = sum(one.in_writing for one in done)
    return Found(f"kills {good}/{len(done)} ({times} kills, {in_writing} within a file)", faults)


def _whole(folder: Path, kind: Kind) -> Whole:
    own, count = folder / kind.name / "run", folder / kind.name / "operations"
    own.parent.mkdir(parents=True)
    began = time.perf_counter()
    status = kind.begun(Plan(count=str(count)), own, own.parent / "log").wait(PATIENCE)
    if status != 0:
        raise RuntimeError(f"the unbroken run of {kind.name} ended with {status}: {_end(own)}")
    return Whole(own, time.perf_counter() - began, int(count.read_text(encoding="ascii")))


def _broken(kind: Kind, whole: Whole, folder: Path, draw: random.Random) -> Broken:
    """Killed until it was often enough, or the run ended; then resumed to its end."""
    own = folder / "run"
    folder.mkdir()
    # Starting torchrun takes longest.
    most = MOST_KILLS if kind.processes == 1 else 1
    wanted, killed, in_writing = draw.randint(1, most), 0, 0
    while killed < wanted:
        within = draw.random() < 0.6
        at = draw.randint(1, max(1, whole.operations // (killed + 1))) if within else 0
        plan = Plan(at=at, every=draw.choice(BETWEEN_STATES))
        victim = kind.begun(plan, own, folder / "log")
        if _killed(victim, PATIENCE if within else draw.uniform(0.1, 1.0) * whole.seconds):
            killed, in_writing = killed + 1, in_writing + within
        elif killed == 0:
            # It had ended before its time came.
            shutil.rmtree(own)
        else:
            break
    last = Plan(every=draw.choice(BETWEEN_STATES))
    status = kind.begun(last, own, folder / "log").wait(PATIENCE)
    if status != 0:
        return Broken(killed, in_writing, f"resumed, it ended with {status}: {_end(own)}")
    if different := list(differences(own, whole.folder)):
        return Broken(killed, in_writing, f"not as in the unbroken run: {', '.join(different)}")
    shutil.rmtree(folder)
    return Broken(killed, in_writing, None)


def _killed(victim: Victim, wait: float) -> bool:
    """Whether it was killed, by itself or after ``wait`` seconds."""
    status = victim.wait(wait)
    if status is None:
        victim.kill()
        status = victim.wait(PATIENCE)
    return status != 0


def _end(own: Path) -> str:
    logs = [own.parent / "log", errors_of(own.parent / "log")]
    text = "\n".join(log.read_text(errors="replace") for log in logs if log.exists())
    return " | ".join(text.replace("\r", "\n").splitlines()[-4:])[-600:]
