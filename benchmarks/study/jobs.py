"""Processes side by side, with a bar; Ctrl-C and SIGTERM let each save its state."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.study.plan import ROOT
from metaopt.errors import ProcessLostError, StoppedError, UserError
from metaopt.signals import CAUGHT, Signals

SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_SAVE = 60.0
_BAR = "{desc}: {n_fmt}/{total_fmt} |{bar:20}| [{elapsed}{postfix}]"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: for people.
        command: what runs.
        log: file that its output is added to.
        progress: what the bar shows while it runs.
        result: what is said of it at its end.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    progress: Callable[[], str]
    result: Callable[[], str]


def run(jobs: Sequence[Job], side_by_side: int, what: str) -> None:
    """Run all jobs, a few at a time.

    Args:
        jobs: in the order in which they begin.
        side_by_side: processes at a time, of one thread each.
        what: is done, for the bar.

    Raises:
        StoppedError: after Ctrl-C or SIGTERM, once all processes have ended.
        UserError: where a process found a mistake of the user's.
        ProcessLostError: where one ended otherwise.
    """
    waiting = list(jobs)
    running: dict[Job, subprocess.Popen[bytes]] = {}
    with tqdm(total=len(jobs), desc=what, bar_format=_BAR, disable=not jobs) as bar:
        try:
            with Signals() as signals:
                while waiting or running:
                    while waiting and len(running) < side_by_side:
                        job = waiting.pop(0)
                        running[job] = _begin(job)
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                    _raise_if_stopped(signals)
                    for job in [job for job, process in running.items() if _ended(job, process)]:
                        del running[job]
                        bar.update()
                        tqdm.write(job.result())
                    bar.set_postfix_str("; ".join(job.progress() for job in running))
        finally:
            _stop(running)


def _begin(job: Job) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | dict.fromkeys(_THREADS, "1")
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    with job.log.open("ab") as log:
        # A session of its own: Ctrl-C comes from here, once, and not from the terminal as well.
        return subprocess.Popen(
            list(job.command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _raise_if_stopped(signals: Signals) -> None:
    received = signals.received()
    if any(received):
        number = CAUGHT[received.index(True)]
        name = "interrupted" if number == signal.SIGINT else "terminated"
        raise StoppedError(number, f"{name}; the same command goes on from here")


def _ended(job: Job, process: subprocess.Popen[bytes]) -> bool:
    status = process.poll()
    if status == 2:
        lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        raise UserError(f"{job.name}: {last.strip()}")
    if status:
        raise ProcessLostError(f"{job.name}: ended with status {status}; its output: {job.log}")
    return status == 0


def _stop(running: dict[Job, subprocess.Popen[bytes]]) -> None:
    """Let all processes save their state and end."""
    for process in running.values():
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in running.values():
        try:
            process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
