"""A command of the package in a process that something happens to.

Processes are forked from one that has imported the package already, which saves seconds each. Under
torchrun, where the first process alone has it happen, they are started as a user's are:

    python -m torch.distributed.run .. -m benchmarks.hardening.victim PLAN train ARGUMENTS

PLAN is JSON, the fields of ``Plan``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import metaopt
import metaopt.meta.run
from benchmarks.hardening import places
from benchmarks.hardening.saboteur import Saboteur
from metaopt import __main__ as commands
from metaopt.base import cli
from metaopt.base.process import World
from studies.output import ROOT


@dataclass(frozen=True)
class Plan:
    """What happens, and when."""

    act: str = "kill"  # kill, fill or forbid
    at: int = 0  # operation on a file, from 1; 0 for never
    place: str = ""  # folder whose disk it is
    at_home: bool = True  # whether the command runs in the repository, or else in ``place``
    every: float = 0.0  # seconds between resume states
    count: str = ""  # file that gets the number of operations at the end


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _action(plan: Plan) -> Callable[[], None]:
    match plan.act:
        case "kill":
            return _kill
        case "fill":
            return partial(places.fill, Path(plan.place))
        case "forbid":
            return partial(places.forbid, Path(plan.place))
    raise ValueError(f"nothing is called {plan.act!r}")


def _save(to_folder: bool, source: str, target: str) -> None:
    rule = metaopt.load(source)
    if to_folder:
        rule.save_pretrained(target)
    else:
        rule.save(target)


@dataclass
class Victim:
    """A process, or those of torchrun."""

    # for so many seconds at most; the exit status, or None where it goes on
    wait: Callable[[float], int | None]
    kill: Callable[[], None]  # with SIGKILL, all of them


FORKED = multiprocessing.get_context("forkserver")
# What would be imported by each of them, at its first optimizer and its first figure.
_LATER = ["torch._dynamo", "sklearn.datasets", "matplotlib.pyplot", "matplotlib.image"]
FORKED.set_forkserver_preload(["benchmarks.hardening.victim", *_LATER])


def errors_of(log: Path) -> Path:
    """The file that goes with ``log``."""
    return log.with_suffix(".err")


def begun(plan: Plan, command: Sequence[str], log: Path) -> Victim:
    """A command in a process of its own, its output in ``log``, errors in ``errors_of(log)``."""
    process = FORKED.Process(target=_forked, args=(plan, command, log))
    process.start()

    def wait(seconds: float) -> int | None:
        process.join(seconds)
        return process.exitcode

    return Victim(wait, process.kill)


def begun_by_torchrun(plan: Plan, command: Sequence[str], log: Path) -> Victim:
    """The same in two processes that torchrun starts."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    own = ("-m", "benchmarks.hardening.victim", json.dumps(asdict(plan)))
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *torchrun, *own, *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )

    def wait(seconds: float) -> int | None:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    return Victim(wait, lambda: os.killpg(process.pid, signal.SIGKILL))


def _forked(plan: Plan, command: Sequence[str], log: Path) -> None:
    for descriptor, path in ((1, log), (2, errors_of(log))):
        with path.open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    # Its own lock is one for many processes: a kill would leave it behind.
    tqdm.set_lock(threading.RLock())
    cli.run(partial(suffer, plan, command))


def suffer(plan: Plan, command: Sequence[str], world: World) -> None:
    """Do what the command says until it happens."""
    name, *arguments = command
    os.chdir(ROOT if plan.at_home else plan.place)
    metaopt.meta.run.SECONDS_BETWEEN_STATES = plan.every
    saboteur = Saboteur(plan.at if world.first else 0, _action(plan))
    saboteur.install()
    match name:
        case "train":
            commands.train(world, arguments)
        case "eval":
            commands.evaluate(world, arguments)
        case _:
            _save(name == "save_pretrained", *arguments)
    if plan.count and world.first:
        Path(plan.count).write_text(str(saboteur.count), encoding="ascii")


if __name__ == "__main__":
    cli.run(partial(suffer, Plan(**json.loads(sys.argv[1])), sys.argv[2:]))
