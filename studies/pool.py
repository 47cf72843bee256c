"""Commands side by side, with a bar; Ctrl-C and SIGTERM let each save its state."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from metaopt.base.errors import ProcessLostError, StoppedError, UserError
from metaopt.base.signals import CAUGHT, Signals
from studies.output import ROOT

SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_BETWEEN_BARS = 1.0
SECONDS_TO_SAVE = 60.0
_BAR = "{desc}: {n_fmt}/{total_fmt} |{bar:20}| [{elapsed}{postfix}]"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, and let all processes that are begun hold it until they end.

    A study that was killed leaves its processes behind; another one must not meet them.

    Raises:
        UserError: where another one holds it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{folder}: another study works there, or processes that a killed one left; wait "
                f"for them, end them, or choose another folder with --out"
            ) from None
        os.set_inheritable(file.fileno(), True)
        yield


@dataclass(frozen=True)
class Job:
    """One process."""

    name: str  # for people
    command: tuple[str, ...]  # what runs
    log: Path  # file that its output is added to
    progress: Callable[[], str]  # what the bar shows while it runs
    result: Callable[[], str]  # what is said of it at its end


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
    shown = 0.0
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
                    if time.monotonic() - shown > SECONDS_BETWEEN_BARS:
                        bar.set_postfix_str("; ".join(job.progress() for job in running))
                        shown = time.monotonic()
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
            # Python's own files are not inherited; the lock is.
            close_fds=False,
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
