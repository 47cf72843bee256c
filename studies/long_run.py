"""Ten times past the horizon: a rule for mini-batches, with teleports and with its updates alone.

    python -m studies.long_run [--rule FILE] [--out DIR] [--record] [--smoke] [--json FILE]
                               [--write-page]

Digits of scikit-learn, cross-entropy, mini-batches of 32, ReLU networks of one to six hidden
layers, without normalisation, with LayerNorm and with BatchNorm, ten seeds side by side; the images
that no meta-training saw judge. The same phi of the update rule runs with its
teleporter and without it. Told are the largest weight that any seed ever had, whatever became
infinite or NaN, and the test loss on the way: geometric means over seeds.

Networks are processes of one thread, one for each core; a command that was stopped goes on with
those that it has not finished. ``--record`` writes into the rule's file how far it was tested,
where every network held (``shortfalls``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import metaopt
from metaopt.base import checkpoint, cli
from metaopt.base.errors import UserError
from metaopt.base.fields import DTYPES
from metaopt.base.files import make_folder, write_atomically
from metaopt.base.loss_statistics import geomean, geomean_interval, resamples
from metaopt.base.process import World
from metaopt.base.streams import Stream
from metaopt.base.tables import markdown_table
from metaopt.meta.looks import first_order
from metaopt.meta.unroll import start, unroll
from metaopt.optim.reach import record_test
from metaopt.rules.composed import MetaOptimizer
from metaopt.symmetry.units import units_of
from metaopt.tasks.images import Images
from metaopt.tasks.own_batch import LossFamily, LossTasks
from studies.output import DOCS, PRETRAINED, ROOT, Page

PAGE = Page(DOCS / "digits.md", "long run table", "long_run")
RULE = PRETRAINED / "digits_update_tele.safetensors"
NORMALISATIONS = ("none", "LayerNorm", "BatchNorm")
RESAMPLINGS = 2000
LARGEST_FACTOR = 100.0


class DeepDigits(Images):
    """Hidden layers of ReLU units, each with a normalisation before it or none.

    Args:
        depth: hidden layers.
        normalisation: one of ``NORMALISATIONS``.
        width: units of each.
    """

    def __init__(self, depth: int, normalisation: str = "none", width: int = 32) -> None:
        super().__init__(width=width, unseen=True)
        pixels, classes = self.shared[0].shape[1], int(self.shared[1].max()) + 1
        parts: list[nn.Module] = []
        for layer in range(depth):
            parts.append(nn.Linear(width if layer else pixels, width))
            if normalisation == "LayerNorm":
                parts.append(nn.LayerNorm(width))
            if normalisation == "BatchNorm":
                # Running means would be state, which the tasks of a family have none of.
                parts.append(nn.BatchNorm1d(width, track_running_stats=False))
            parts.append(nn.ReLU())
        self.net = nn.Sequential(*parts, nn.Linear(width, classes))
        self.symmetries = metaopt.symmetries(self.net, example=self.shared[0][:8])
        shapes = {name: p.shape for name, p in self.net.named_parameters()}
        self.units = units_of(self.symmetries, shapes)


@dataclass(frozen=True)
class Size:
    """Of the measurement."""

    networks: tuple[tuple[int, str], ...]  # hidden layers and normalisation of each
    marks: tuple[int, ...]  # inner steps at which networks are judged; the last one ends a run
    seeds: int  # side by side
    every: int  # steps between two looks at the weights


NETWORKS = tuple((depth, kind) for kind in NORMALISATIONS for depth in range(1, 7))
FULL = Size(NETWORKS, (100, 1000, 3000, 10000), 10, 50)
SMOKE = Size(((2, "none"), (2, "BatchNorm")), (4, 8), 2, 2)


@dataclass(frozen=True)
class Row:
    """One network, with teleports and with updates alone."""

    depth: int  # hidden layers
    normalisation: str  # before each
    marks: list[int]  # inner steps
    pair: list[float]  # test loss at each, the geometric mean over seeds
    alone: list[float]  # of the updates alone
    ratio: list[float]  # pair / alone at the last one, with its 95 % interval
    largest: float  # the largest absolute weight of any seed on the way
    largest_alone: float  # of the updates alone
    not_finite: int  # seeds with a weight that was infinite or NaN, of both


@dataclass(frozen=True)
class Job:
    """One network to be measured."""

    depth: int  # hidden layers
    normalisation: str  # before each
    size: Size  # of the measurement
    rule: Path  # the pair's checkpoint
    folder: Path  # where what was found is kept
    digest: str  # of rule and size, so that nothing is taken for another's


@dataclass(frozen=True)
class _Run:
    losses: np.ndarray
    largest: np.ndarray


def _run(tasks: LossTasks, optimizer: MetaOptimizer, size: Size) -> _Run:
    """Losses [marks, seeds] and the largest weight on the way [seeds]; NaN where one was none."""
    losses = []
    with torch.no_grad():
        state = start(tasks, optimizer, first_order)
        largest = tasks.initial[0].new_zeros(tasks.size)
        while state.step < size.marks[-1]:
            state, _ = unroll(tasks, optimizer, state, size.every)
            now = torch.stack([W.abs().amax(dim=(1, 2)) for W in state.weights]).amax(0)
            largest = torch.maximum(largest, now)
            if state.step in size.marks:
                losses.append(tasks.at(state.step).loss(state.weights).numpy())
    return _Run(np.stack(losses), largest.numpy())


def of_network(job: Job) -> Row:
    """One network with both, or what an earlier command found of it."""
    path = job.folder / f"{job.depth}_{job.normalisation}_{job.digest}.json"
    if path.exists():
        return Row(**json.loads(path.read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    rule = metaopt.load(job.rule)
    pair, dtype = rule.optimizer, DTYPES[rule.config.dtype]
    alone = MetaOptimizer({"update": pair.rules["update"]}, None)
    family = LossFamily(DeepDigits(job.depth, job.normalisation), "DeepDigits")
    tasks = family.sample(Stream.TEST, 0, 0, job.size.seeds, dtype)
    row = _row(job, *(_run(tasks, optimizer, job.size) for optimizer in (pair, alone)))
    write_atomically(path, json.dumps(asdict(row)).encode())
    return row


def rows(size: Size, rule: Path, folder: Path) -> list[Row]:
    """All networks, in order of normalisation and depth."""
    make_folder(folder)
    digest = _digest(size, checkpoint.read(rule))
    # Deep ones take longest.
    networks = sorted(size.networks, key=lambda network: -network[0])
    jobs = [Job(*network, size, rule, folder, digest) for network in networks]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        found = list(tqdm(pool.map(of_network, jobs), total=len(jobs), desc="networks"))
    return sorted(found, key=lambda row: (NORMALISATIONS.index(row.normalisation), row.depth))


def _digest(size: Size, content: checkpoint.Checkpoint) -> str:
    """Of what figures depend on: what else a file tells of its rule may change."""
    told = hashlib.sha256(json.dumps([size.marks, size.seeds, content.config]).encode())
    for name, tensor in sorted(content.tensors.items()):
        told.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return told.hexdigest()[:12]


def _row(job: Job, pair: _Run, alone: _Run) -> Row:
    size = job.size
    ratios = pair.losses[-1:] / alone.losses[-1:]
    low, high = geomean_interval(ratios, resamples(size.seeds, RESAMPLINGS, 0))
    both = np.stack([pair.largest, alone.largest])
    return Row(
        depth=job.depth,
        normalisation=job.normalisation,
        marks=list(size.marks),
        pair=geomean(pair.losses).tolist(),
        alone=geomean(alone.losses).tolist(),
        ratio=[float(geomean(ratios)[0]), float(low[0]), float(high[0])],
        largest=float(pair.largest.max()),
        largest_alone=float(alone.largest.max()),
        not_finite=int((~np.isfinite(both)).any(axis=0).sum()),
    )


def shortfalls(found: list[Row]) -> list[str]:
    """Where a network did not hold to the end, a line each.

    It holds where all is finite, no weight is larger than ``LARGEST_FACTOR`` times the updates'
    alone, and the loss is no worse than theirs: the interval of the ratio reaches down to 1.
    """
    lines = []
    for row in found:
        where = f"{row.depth} hidden layers, normalisation {row.normalisation}"
        if row.not_finite:
            lines.append(f"{where}: {row.not_finite} seeds are not finite")
        elif row.largest > LARGEST_FACTOR * row.largest_alone:
            lines.append(f"{where}: a weight of {row.largest:.3g}, alone {row.largest_alone:.3g}")
        if not row.ratio[1] <= 1:
            lines.append(f"{where}: loss {row.ratio[0]:.3g} times that of the updates alone")
    return lines


def table(found: list[Row]) -> str:
    """A row for each network."""
    marks = found[0].marks
    header = [
        "hidden layers",
        "normalisation",
        *(f"loss at {mark:,}" for mark in marks),
        "updates alone",
        f"ratio at {marks[-1]:,}",
        "largest weight",
        "updates alone",
        "not finite",
    ]
    lines = [
        [
            str(row.depth),
            row.normalisation,
            *(f"{loss:.3g}" for loss in row.pair),
            f"{row.alone[-1]:.3g}",
            "{:.2f} ({:.2f} to {:.2f})".format(*row.ratio),
            f"{row.largest:.3g}",
            f"{row.largest_alone:.3g}",
            str(row.not_finite),
        ]
        for row in found
    ]
    return markdown_table(header, lines)


def main(world: World) -> None:
    """Train, print, write the page."""
    parser = argparse.ArgumentParser(description="Ten times past the horizon.")
    parser.add_argument("--rule", type=Path, default=RULE, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/long_run")
    parser.add_argument("--record", action="store_true", help="how far it held, into the rule")
    parser.add_argument("--smoke", action="store_true", help="few steps, small networks")
    arguments = PAGE.parse(parser)
    size = SMOKE if arguments.smoke else FULL
    found = rows(size, arguments.rule, arguments.out or ROOT / "runs" / "long_run")
    short = shortfalls(found)
    verdict = "\n".join(f"- {line}" for line in short) or "Every network holds to the end."
    text = f"{size.seeds} seeds\n\n{table(found)}\n\n{verdict}"
    PAGE.tell(arguments, text, [asdict(row) for row in found])
    if arguments.record:
        if short or arguments.smoke:
            raise UserError(f"--record: {arguments.rule} was not run far enough, or did not hold")
        print(record_test(arguments.rule, size.marks[-1], "python -m studies.long_run"))


if __name__ == "__main__":
    cli.run(main)
