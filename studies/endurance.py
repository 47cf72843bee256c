"""No divergence: the default rule with many seeds and for many steps, on the networks of a user.

    python -m studies.endurance [--rule NAME] [--smoke] [--out DIR] [--json FILE] [--write-page]

The four networks of ``studies.drop_in_training`` on digits of scikit-learn, mini-batches of 32, the
rule as it is (``lr`` 1, told nothing): 100 seeds for 1,000 steps and 10 seeds for 10,000. Beside it
AdamW at two constant rates with the 10 seeds, for the size of its weights. Seeds are trajectories
side by side in the one inner loop (``metaopt.meta.unroll``); that batch normalisation has no
running statistics there, so that images which judge are normalised by their own, is the only
difference to a user's loop.

Every 50 steps all seeds are looked at: their test loss, at the averaged weights where a rule
averages, and their largest absolute weight. A seed has *diverged* if a test loss is not finite, or
above ten times its first one.

Processes of one thread, one for each core, run groups of seeds; a command that was stopped goes on
with those that it has not finished. The text goes between the markers of
``docs/results/general.md``, all figures into ``endurance.json`` beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import metaopt
from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.fields import DTYPES
from metaopt.base.files import make_folder, write_atomically
from metaopt.base.loss_statistics import clean, geomean
from metaopt.base.process import World
from metaopt.base.shipped import DEFAULT
from metaopt.base.streams import Stream
from metaopt.base.tables import markdown_table
from metaopt.optim.memory import identity
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.hand_made import CosineAdamW
from metaopt.tasks.own_batch import LossFamily
from studies.drop_in_training import MODELS
from studies.endurance_seeds import Found, OfDropIn, run
from studies.output import DOCS, ROOT, Page
from studies.pieces import side_by_side

PAGE = Page(DOCS / "general.md", "endurance table", "endurance")
ADAMW = {f"AdamW, {rate:g}": rate for rate in (1e-3, 3e-3)}
"""Constant rates, by name."""
WEIGHT_DECAY = 0.01
LARGEST_FACTOR = 100.0
"""How much larger weights may be than AdamW's."""


@dataclass(frozen=True)
class Length:
    """How many seeds run how far."""

    seeds: int  # the first ones
    marks: tuple[int, ...]  # inner steps at which seeds are judged; the last one ends a run


@dataclass(frozen=True)
class Size:
    """Of the measurement."""

    many: Length  # of the rule alone
    far: Length  # of all optimizers; has the marks of ``many`` and more
    every: int  # steps between two looks; divides all marks
    together: int  # seeds of a process, at most


FULL = Size(Length(100, (100, 1000)), Length(10, (100, 1000, 3000, 10000)), 50, 25)
SMOKE = Size(Length(3, (2,)), Length(2, (2, 4)), 2, 2)


@dataclass(frozen=True)
class Job:
    """Some seeds of one optimizer on one network."""

    model: str  # name of the network
    optimizer: str  # a name in ADAMW, or of a rule
    rule: str  # the rule, as metaopt.load takes it; empty for AdamW
    version: str  # tells its parameters
    first: int  # of the seeds
    seeds: int  # how many
    marks: tuple[int, ...]  # inner steps at which they are judged
    every: int  # steps between two looks

    @property
    def file(self) -> str:
        """Where what was found is kept: nothing is taken for another's."""
        told = {name: value for name, value in asdict(self).items() if name != "rule"}
        return f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}.json"


@dataclass(frozen=True)
class Row:
    """One optimizer on one network."""

    model: str  # name of the network
    optimizer: str  # its name
    learned: bool
    seeds: int
    marks: list[int]  # inner steps
    loss: list[float]  # test loss at each, the geometric mean over seeds
    worst: list[float]  # of the worst seed
    largest: list[float]  # absolute weight of any seed until each
    diverged: int  # seeds
    not_finite: int  # seeds


def of_job(job: Job, folder: Path) -> Found:
    """Run a job, or read what an earlier command found of it."""
    path = folder / job.file
    if path.exists():
        return Found(**json.loads(path.read_text(encoding="utf-8")))
    dtype = torch.float32
    if job.optimizer in ADAMW:
        # A cosine that never ends is a constant rate.
        update = CosineAdamW(ADAMW[job.optimizer], 0.9, WEIGHT_DECAY, horizon=math.inf)
        optimizer = MetaOptimizer({"update": update}, None)
    else:
        rule = metaopt.load(job.rule)
        optimizer, dtype = rule.optimizer, DTYPES[rule.config.dtype]
    family = LossFamily(OfDropIn(job.model), "studies.endurance_seeds:OfDropIn")
    tasks = family.sample(Stream.TEST, 0, job.first, job.seeds, dtype)
    found = run(tasks, optimizer, job.marks, job.every)
    write_atomically(path, json.dumps(asdict(found)).encode())
    return found


def jobs_of(size: Size, rule: str, version: str) -> dict[tuple[str, str, int], list[Job]]:
    """All jobs of each row: of a network, an optimizer and a number of seeds.

    Args:
        size: of the measurement.
        rule: as ``metaopt.load`` takes it.
        version: tells its parameters.
    """
    name = Path(rule).stem
    runs = [(name, rule, version, length) for length in (size.many, size.far)]
    runs += [(adamw, "", "", size.far) for adamw in ADAMW]
    return {
        (model, optimizer, length.seeds): [
            Job(model, optimizer, path, own, first, count, length.marks, size.every)
            for first in range(0, length.seeds, size.together)
            for count in [min(size.together, length.seeds - first)]
        ]
        for model in MODELS
        for optimizer, path, own, length in runs
    }


def rows(size: Size, rule: str, folder: Path) -> list[Row]:
    """All networks, the rule before AdamW."""
    make_folder(folder)
    loaded = metaopt.load(rule)
    of_rows = jobs_of(size, rule, identity(loaded, loaded.optimizer))
    # Long ones first, so that no core waits at the end.
    jobs = sorted((job for own in of_rows.values() for job in own), key=lambda job: -job.marks[-1])
    found = side_by_side(partial(of_job, folder=folder), jobs, None, "seeds")
    return [_row(own, [found[job] for job in own]) for own in of_rows.values()]


def _row(jobs: Sequence[Job], found: Sequence[Found]) -> Row:
    together = found[0]
    for other in found[1:]:
        together = together.joined(other)
    losses = np.array(together.losses)
    return Row(
        model=jobs[0].model,
        optimizer=jobs[0].optimizer,
        learned=bool(jobs[0].rule),
        seeds=sum(job.seeds for job in jobs),
        marks=list(jobs[0].marks),
        loss=geomean(losses).tolist(),
        worst=clean(losses).max(axis=-1).tolist(),
        largest=np.array(together.largest).max(axis=-1).tolist(),
        diverged=together.diverged,
        not_finite=together.not_finite,
    )


def ratio(row: Row, found: Sequence[Row]) -> float:
    """The largest weight of a row over AdamW's until the same step, at the rate where that is less.

    Args:
        row: of the rule.
        found: all rows.
    """
    step = row.marks[-1]
    beside = [other for other in found if other.model == row.model and not other.learned]
    return row.largest[-1] / min(other.largest[other.marks.index(step)] for other in beside)


def shortfalls(found: Sequence[Row]) -> list[str]:
    """Where the rule did not hold, a line each: seeds that diverged, and weights too large."""
    lines = []
    for row in found:
        if not row.learned:
            continue
        where = f"{row.model}, {row.seeds} seeds, {row.marks[-1]:,} steps"
        if row.diverged:
            lines.append(f"{where}: {row.diverged} diverged")
        if row.not_finite:
            lines.append(f"{where}: {row.not_finite} are not finite")
        elif not ratio(row, found) <= LARGEST_FACTOR:
            lines.append(f"{where}: weights are {ratio(row, found):.3g} times AdamW's")
    return lines


def table(found: Sequence[Row]) -> str:
    """A line for each row; losses are geometric means, with the worst seed's in brackets."""
    marks = sorted({mark for row in found for mark in row.marks})
    header = [
        "network",
        "optimizer",
        "seeds",
        "steps",
        *(f"loss at {mark:,}" for mark in marks),
        "largest weight",
        "times AdamW's",
        "diverged",
        "not finite",
    ]
    lines = []
    for row in found:
        each = zip(row.marks, row.loss, row.worst, strict=True)
        cells = {mark: f"{loss:.3g} ({worst:.3g})" for mark, loss, worst in each}
        lines.append(
            [
                row.model,
                row.optimizer,
                str(row.seeds),
                f"{row.marks[-1]:,}",
                *(cells.get(mark, "") for mark in marks),
                f"{row.largest[-1]:.3g}",
                f"{ratio(row, found):.3g}" if row.learned else "",
                str(row.diverged),
                str(row.not_finite),
            ]
        )
    return markdown_table(header, lines)


def main(world: World) -> None:
    """Train, print, write the page."""
    parser = argparse.ArgumentParser(description="No divergence, with many seeds and far.")
    parser.add_argument("--rule", default=DEFAULT, metavar="NAME", help="or a file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/endurance")
    parser.add_argument("--smoke", action="store_true", help="few steps, few seeds")
    arguments = PAGE.parse(parser)
    if Path(arguments.rule).stem in ADAMW:
        raise UserError(f"--rule: found {arguments.rule}, the name of a rival; give a learned rule")
    size = SMOKE if arguments.smoke else FULL
    found = rows(size, arguments.rule, arguments.out or ROOT / "runs" / "endurance")
    short = shortfalls(found)
    held = (
        f"No seed diverged, and no weight is larger than {LARGEST_FACTOR:.0f} times AdamW's "
        f"largest until the same step, at the rate where that is less."
    )
    verdict = "\n".join(f"- {line}" for line in short) or held
    text = (
        "Test losses are geometric means over seeds, in brackets that of the worst seed"
        f"\n\n{table(found)}\n\n{verdict}"
    )
    PAGE.tell(arguments, text, [asdict(row) for row in found])


if __name__ == "__main__":
    cli.run(main)
