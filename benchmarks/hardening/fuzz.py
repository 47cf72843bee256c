"""Damaged configurations, overrides and files: one line each, and bounds on time and memory.

Cases are read in worker processes, one after the other. A worker may take 1 GiB more of addresses
than it has at first; one that does not come back in time, or dies, is a fault of its case, and
another worker goes on with the next.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.hardening import trap
from benchmarks.hardening.settings import Found, Hardening, side_by_side
from benchmarks.hardening.targets import TARGETS
from benchmarks.hardening.victim import FORKED
from metaopt.base.errors import UserError

SECONDS = 10
HANGS = 3 * SECONDS
"""Seconds after which a worker is taken for one that will not come back."""
BYTES = 2**30
LONGEST = 1000
"""Characters of a line for the user."""
CHUNK = 250


class TooLongError(BaseException):
    """A case took too long; not an error that anything would catch."""


def fuzz(settings: Hardening, folder: Path) -> Found:
    """Read as many damaged files and arguments as ``settings`` say."""
    chunks = [
        range(first, min(first + CHUNK, settings.fuzz)) for first in range(0, settings.fuzz, CHUNK)
    ]
    work = partial(_chunk, settings.seed, folder)
    done = [row for rows in side_by_side(work, chunks, settings.jobs, "damaged") for row in rows]
    names = list(TARGETS)
    faults = [
        f"case {row['case']}, {names[row['case'] % len(names)]}: {row['kind']}: {row['what']}"
        for row in done
        if row["kind"] != "fine"
    ]
    kinds = Counter(row["kind"] for row in done)
    counts = ", ".join(f"{name} {kinds[name]}" for name in KINDS)
    return Found(f"fuzz {len(done)} cases, {counts}", faults)


KINDS = ("tracebacks", "code run", "over 1 GB", "over 10 s", "unclear")


def _chunk(seed: int, folder: Path, cases: range) -> list[dict[str, Any]]:
    """What became of some cases, in as many workers as that takes."""
    own = folder / f"from{cases.start}"
    own.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    while len(rows) < len(cases):
        log = own / f"log{len(rows)}"
        process = FORKED.Process(target=_work, args=(seed, cases[len(rows) :], own, log))
        process.start()
        seen, moved = -1, time.monotonic()
        while process.is_alive() and time.monotonic() - moved < HANGS:
            process.join(0.2)
            if log.exists() and log.stat().st_size != seen:
                seen, moved = log.stat().st_size, time.monotonic()
        hangs = process.is_alive()
        process.kill()
        process.join()
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        rows += [json.loads(line) for line in lines]
        if len(rows) < len(cases):
            kind = "over 10 s" if hangs else "tracebacks"
            what = "it hangs" if hangs else f"the process died with {process.exitcode}"
            rows.append({"case": cases[len(rows)], "kind": kind, "what": what})
    subprocess.run(["rm", "-rf", str(own)], check=True)
    return rows


def _work(seed: int, cases: range, own: Path, log: Path) -> None:
    """Read cases and write a line about each."""
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    ran: list[str] = []
    for module, name in ((os, "system"), (os, "popen"), (subprocess, "Popen")):
        setattr(module, name, lambda *given, **more: ran.append(str(given)))
    signal.signal(signal.SIGALRM, _too_long)
    os.chdir(own)
    names = list(TARGETS)
    for name in names[: len(cases)]:
        # What a target makes once is no part of a case.
        _read(name, random.Random(0), own, ran)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + BYTES, resource.RLIM_INFINITY))
    with log.open("w", encoding="utf-8", buffering=1) as file:
        for case in cases:
            name = names[case % len(names)]
            kind, what = _read(name, random.Random(f"{seed} {case}"), own, ran)
            print(json.dumps({"case": case, "kind": kind, "what": what}), file=file)


def _read(name: str, draw: random.Random, own: Path, ran: list[str]) -> tuple[str, str]:
    """(kind, what) became of a case."""
    ran.clear()
    trap.SPRUNG.clear()
    before, began = _peak_from_here(), time.perf_counter()
    kind, what = "fine", ""
    try:
        with _alarm():
            TARGETS[name](draw, own)
    except UserError as error:
        line = str(error)
        if "\n" in line or len(line) > LONGEST:
            kind, what = "unclear", f"{len(line)} characters: {line[:200]!r}"
    except TooLongError as error:
        kind, what = "over 10 s", _place(error)
    except MemoryError as error:
        kind, what = "over 1 GB", _place(error)
    except BaseException as error:
        kind, what = "tracebacks", f"{type(error).__name__}: {error!s:.150} ({_place(error)})"
    if kind == "fine":
        taken, seconds = _status("VmHWM") - before, time.perf_counter() - began
        if seconds > SECONDS:
            kind, what = "over 10 s", f"{seconds:.0f} s"
        if taken > BYTES:
            kind, what = "over 1 GB", f"{taken / BYTES:.1f} GiB"
    if ran or trap.SPRUNG:
        kind, what = "code run", f"{ran} {trap.SPRUNG}"
    return kind, what


@contextmanager
def _alarm() -> Iterator[None]:
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLongError


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "metaopt" in frame.filename] or frames
    return ", ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in inside[-2:])


def _peak_from_here() -> int:
    """Resident bytes now, from where the largest is measured."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {field} in /proc/self/status: memory is watched on Linux only")
