"""How much slower meta-training is where other processes keep the cores busy.

    python -m benchmarks.neighbour [--smoke] [--json FILE]

Twelve outer steps of ``lstm_update_tele`` after two to warm up, in a fresh process each time, alone
and beside two processes that do nothing but count: in turns, three rounds, medians. Threads wait at
barriers as metaopt lets them (``metaopt.base.idle_threads``), as torch alone would (libgomp's
300,000 spins before they sleep), sleep at once, or there is one thread and no barrier.
Beside the neighbours, metaopt's time is to be at most 2.5 times the quiet one. The machine itself
has to be quiet otherwise.

``--smoke`` takes two steps of tiny networks, in one round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from benchmarks import machine
from metaopt.base import cli, config
from metaopt.base.idle_threads import OWN_WORDS
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from studies.output import ROOT, add_json, write_json

CONFIG = "lstm_update_tele.yaml"
TINY = ("task.width=4", "task.inputs=4", "task.outputs=4", "task.samples=4", "meta.batch=2")
NEIGHBOURS = 2
BUSY = "while True: pass"
BAR = 2.5
"""Times the quiet time."""
OURS = "metaopt's"
WAITING: dict[str, dict[str, str]] = {
    OURS: {},
    "spinning, as torch's": {"GOMP_SPINCOUNT": "300000"},
    "sleeping at once": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""What is set in the environment of a process, by how its threads wait."""
_TIMED = "from benchmarks.neighbour import timed; timed()"


@dataclass(frozen=True)
class Size:
    """Of a measurement."""

    overrides: tuple[str, ...]  # of the configuration
    steps: int  # outer steps that are timed
    warm_up: int  # outer steps before
    rounds: int  # in which each kind of waiting has its turn


FULL = Size((), steps=12, warm_up=2, rounds=3)
SMOKE = Size(TINY, steps=2, warm_up=1, rounds=1)


@dataclass(frozen=True)
class Row:
    """One way to wait."""

    waiting: str  # its name
    quiet: float  # seconds alone, the median
    beside: float  # seconds beside the neighbours, the median

    @property
    def ratio(self) -> float:
        """How many times slower beside the neighbours."""
        return self.beside / self.quiet


def timed() -> None:
    """Within a process of its own: steps and overrides from the command line, seconds printed."""
    steps, warm_up, *overrides = sys.argv[1:]
    trainer = MetaTrainer(config.load(TrainConfig, CONFIG, overrides), torch.device("cpu"))
    for _ in range(int(warm_up)):
        trainer.outer_step()
    began = time.perf_counter()
    for _ in range(int(steps)):
        trainer.outer_step()
    print(time.perf_counter() - began)


def seconds(waiting: str, size: Size) -> float:
    """Of the steps, in a fresh process whose threads wait in one of the ways."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN_WORDS}
    numbers = [str(number) for number in (size.steps, size.warm_up)]
    done = subprocess.run(
        [sys.executable, "-c", _TIMED, *numbers, *size.overrides],
        env=environment | WAITING[waiting],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout)


@contextmanager
def neighbours(count: int = NEIGHBOURS) -> Iterator[None]:
    """Within the context, other processes keep as many cores busy."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def rows(size: Size) -> list[Row]:
    """All measurements, in turns."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in WAITING}
    turns = [name for _ in range(size.rounds) for name in WAITING]
    for waiting in tqdm(turns, desc="alone and beside busy processes", leave=False):
        quiet, beside = found[waiting]
        quiet.append(seconds(waiting, size))
        with neighbours():
            beside.append(seconds(waiting, size))
    return [
        Row(waiting, statistics.median(quiet), statistics.median(beside))
        for waiting, (quiet, beside) in found.items()
    ]


def table(found: Sequence[Row]) -> str:
    """For people, with what the bar says of it."""
    ours = next(row for row in found if row.waiting == OURS)
    header = ["threads wait", "alone, s", "times metaopt's", "beside, s", "times alone"]
    lines = [
        [
            row.waiting,
            f"{row.quiet:.3g}",
            f"{row.quiet / ours.quiet:.2f}",
            f"{row.beside:.3g}",
            f"{row.ratio:.2f}",
        ]
        for row in found
    ]
    verdict = "met" if ours.ratio <= BAR else "missed"
    bar = f"Beside them {ours.ratio:.2f} times the quiet time; at most {BAR}: {verdict}."
    return f"{markdown_table(header, lines)}\n\n{bar}"


def main(world: World) -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny networks")
    add_json(parser)
    arguments = parser.parse_args()
    size = SMOKE if arguments.smoke else FULL
    found = rows(size)
    here = machine.measure(torch.device("cpu"))
    print(f"{here.lines()}; {os.cpu_count()} cores, {NEIGHBOURS} busy processes beside\n")
    print(table(found))
    if arguments.json is not None:
        told = [asdict(row) | {"ratio": row.ratio} for row in found]
        write_json(arguments.json, {"machine": vars(here), "rows": told})


if __name__ == "__main__":
    cli.run(main)
