"""Contenders on test tasks, each result in a file of its own that is computed once.

    python -m studies.study.evaluation JOBS.json DEVICE

runs those of a list that are not there yet; the study starts it in processes of one thread.
``compared`` puts the results of one contender, seed by seed, together.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter

from metaopt._version import __version__
from metaopt.base import cli
from metaopt.base.errors import MisfitError, UserError
from metaopt.base.fields import DTYPES
from metaopt.base.files import write_atomically
from metaopt.base.loss_statistics import clean, geomean
from metaopt.base.process import World
from metaopt.evaluation.config import EvalConfig
from metaopt.evaluation.contenders import Contender, baseline_contenders, learned_contenders
from metaopt.evaluation.evaluate import PAIR_STEPS, run_contender, unseen_tasks
from metaopt.tasks.least_loss import least_loss, rank_bound
from studies import pool

Array = NDArray[np.float64]
RESTARTS = 2
"""Of the second-order search where no closed form is known: more gained little."""


class Evaluation(BaseModel):
    """One contender on the test tasks of one family."""

    model_config = ConfigDict(frozen=True)

    name: str  # of the row with its seed, or of the hand-made optimizer
    family: str  # of the tasks
    settings: EvalConfig  # of the evaluation; a hand-made optimizer is its only baseline
    checkpoint: Path | None  # of a learned optimizer
    folder: Path  # where results are kept

    @cached_property
    def file(self) -> Path:
        """Named after everything that the result depends on."""
        depends = {
            "version": __version__,
            "settings": self.settings.model_dump(exclude={"bootstrap"}),
            "checkpoint": None if self.checkpoint is None else sha256(self.checkpoint),
        }
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{self.family}-{self.name.replace(' ', '-')}-{digest}.npz"

    def shown(self) -> str:
        """The kept result in a line."""
        found = read(self)
        if found.losses is None:
            return f"{self.name} on {self.family}: {found.about['left_out']}"
        last = clean(found.losses)[-1]
        median = float(sorted(last)[len(last) // 2])
        return f"{self.name} on {self.family}: median loss {median:.3g}"


LISTED = TypeAdapter(list[Evaluation])


@dataclass(frozen=True)
class Evaluated:
    """What a contender did."""

    losses: Array | None  # [steps + 1, tasks], as computed; None where it does not fit
    # name, kind, gradients_per_step, seconds_per_step, teleport and origin; or left_out
    about: dict[str, Any]


def sha256(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(evaluation: Evaluation) -> Evaluated:
    """The kept result."""
    with np.load(evaluation.file, allow_pickle=False) as content:
        about = json.loads(str(content["about"]))
        losses = content["losses"].astype(np.float64)
    return Evaluated(losses if losses.size else None, about)


def keep(evaluation: Evaluation, found: Evaluated) -> None:
    """Write a result, atomically, in the dtype that it was computed in."""
    losses = np.empty(0) if found.losses is None else found.losses
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        about=np.array(json.dumps(found.about)),
        losses=losses.astype(evaluation.settings.dtype),
    )
    write_atomically(evaluation.file, buffer.getvalue())


def compute(evaluation: Evaluation, device: torch.device) -> Evaluated:
    """Run a contender by the one unroll."""
    world, settings = World(), evaluation.settings
    contender = _contender(evaluation, device, world)
    if contender is None:
        return Evaluated(None, {"left_out": "tuned for a step beyond the last"})
    tasks = unseen_tasks(settings, device, world)
    try:
        outcome = run_contender(contender, tasks, settings.steps, world)
    except MisfitError as error:
        return Evaluated(None, {"left_out": str(error)})
    about = {
        "name": contender.name,
        "kind": contender.kind,
        "gradients_per_step": contender.optimizer.gradients_per_step,
        "seconds_per_step": outcome.seconds_per_step,
        "teleport": outcome.teleport,
        "origin": contender.origin,
    }
    return Evaluated(outcome.losses, about)


def _contender(evaluation: Evaluation, device: torch.device, world: World) -> Contender | None:
    if evaluation.checkpoint is not None:
        return learned_contenders([evaluation.checkpoint], device, True, world)[0]
    # Tuned on validation tasks, so other test tasks find it there; a cache for each, since several
    # processes write.
    stem = f"tuned-{evaluation.family}-{evaluation.name.replace(' ', '-')}"
    cache = evaluation.folder / f"{stem}.json"
    return next(iter(baseline_contenders(evaluation.settings, device, cache, world)), None)


def job(group: Sequence[Evaluation], out: Path, device: str) -> pool.Job:
    """The command that runs a group of evaluations.

    Args:
        group: of evaluations that are not there.
        out: folder of the study.
        device: auto, cpu, cuda or cuda:N.
    """
    first = group[0]
    listed = first.file.with_suffix(".json")
    write_atomically(listed, LISTED.dump_json(list(group)))

    def progress() -> str:
        return f"{first.name} {sum(one.file.is_file() for one in group)}/{len(group)}"

    def result() -> str:
        return "\n".join(one.shown() for one in group)

    command = (sys.executable, "-m", "studies.study.evaluation", str(listed), device)
    return pool.Job(first.name, command, out / "logs" / f"{first.file.stem}.txt", progress, result)


def least_losses(settings: EvalConfig) -> Array:
    """inf L of each test task, [tasks]; 0 where it is so by the number of hidden units.

    In closed form where the samples are at most as many as the inputs, else the best that long
    second-order runs find (``metaopt.tasks.least_loss``).

    Raises:
        UserError: where nothing is known of it.
    """
    task = settings.task
    if task.width >= min(task.outputs, task.samples) and task.samples <= task.inputs:
        return np.zeros(settings.tasks)
    if task.layers > 2:
        raise UserError(
            f"field families: the least loss is known for two layers, found {task.layers} layers"
        )
    tasks = unseen_tasks(settings, torch.device("cpu"), World())
    if task.samples <= task.inputs:
        return rank_bound(tasks).numpy()
    return least_loss(tasks, restarts=RESTARTS).loss.numpy()


def excess(losses: Array, least: Array, settings: EvalConfig) -> Array:
    """L - inf L, at least what the dtype can tell apart from 0: [steps + 1, tasks].

    Args:
        losses: [steps + 1, tasks].
        least: [tasks].
        settings: of the evaluation that gave them.
    """
    resolution = torch.finfo(DTYPES[settings.dtype]).eps * least
    return np.maximum(clean(losses) - least, resolution)


def right_to_rounding(losses: Array, settings: EvalConfig) -> float:
    """(2 e)^2 L(w_0), e the rounding of the dtype: the geometric mean over tasks.

    Outputs that are wrong by twice e of what they were wrong by at first. A convention: which of
    two losses below it is the lower one is not counted.

    Args:
        losses: [steps + 1, tasks].
        settings: of the evaluation that gave them.
    """
    rounding = torch.finfo(DTYPES[settings.dtype]).eps
    return float((2 * rounding) ** 2 * geomean(clean(losses)[0]))


FIRST_ORDER = ("GD", "Momentum", "Adam", "L-BFGS")
"""The hand-made methods that the claims are against."""


@dataclass(frozen=True)
class RunOf:
    """One run of a contender on the test tasks."""

    seed: int | None  # of meta-training; None for hand-made optimizers
    losses: Array  # cleaned, or the excess over the least loss, [steps + 1, tasks]
    raw: Array  # losses as computed
    about: dict[str, Any]  # of the evaluation
    rounding: float  # the loss of outputs that are right to it, see ``right_to_rounding``

    def at_rounding(self, step: int) -> bool:
        """Whether the geometric mean over tasks has come down to rounding at a step."""
        return float(geomean(self.losses[step])) <= self.rounding


@dataclass(frozen=True)
class Compared:
    """A contender with the losses of all its seeds."""

    name: str  # of the row, or of the hand-made optimizer
    label: str  # in tables
    kind: str  # learned, control, ablation, baseline or reference
    runs: Sequence[RunOf]  # one a seed

    def over_seeds(self) -> Array:
        """Geometric mean over seeds, task by task, [steps + 1, tasks]."""
        return geomean(np.stack([run.losses for run in self.runs], axis=-1))

    def extreme(self, step: int, worst: bool) -> Array:
        """Losses [steps + 1, tasks] of the seed that is worst, or best, at a step."""
        order = sorted(self.runs, key=lambda run: float(geomean(run.losses[step])))
        return order[-1 if worst else 0].losses

    @property
    def hand_made(self) -> bool:
        """Whether a bar may be held against it."""
        return self.kind == "baseline" and self.name.partition("@")[0] in FIRST_ORDER


def shown_steps(steps: int) -> list[int]:
    """The inner steps at which everything is given."""
    return sorted({step for step in PAIR_STEPS if step <= steps} | {steps})


def best_hand_made(contenders: Sequence[Compared], step: int) -> Compared | None:
    """The hand-made optimizer with the least loss at a step, whatever step it was tuned for."""
    known = [contender for contender in contenders if contender.hand_made]
    return min(known, key=lambda c: float(geomean(c.runs[0].losses[step])), default=None)


def compared(
    name: str, label: str, kind: str, evaluations: Sequence[tuple[int | None, Evaluation]]
) -> Compared | str:
    """A contender from its kept results, or the line that says why it was left out.

    Args:
        name: of the contender.
        label: in tables.
        kind: ``learned``, ``control`` or ``ablation``; ``baseline`` stands for its own kind.
        evaluations: by seed, all on one family.
    """
    runs = []
    for seed, evaluation in evaluations:
        found = read(evaluation)
        if found.losses is None:
            return f"{label} on {evaluation.family}: {found.about['left_out']}"
        least = least_losses(evaluation.settings)
        losses = clean(found.losses)
        if least.any():
            losses = excess(found.losses, least, evaluation.settings)
        rounding = right_to_rounding(found.losses, evaluation.settings)
        runs.append(RunOf(seed, losses, found.losses, found.about, rounding))
    kind = runs[0].about["kind"] if kind == "baseline" else kind
    return Compared(name, label, kind, runs)


def main(world: World) -> None:
    """Run those of a list that are not there yet."""
    listed, device = sys.argv[1:]
    for evaluation in LISTED.validate_json(Path(listed).read_bytes()):
        if not evaluation.file.is_file():
            keep(evaluation, compute(evaluation, cli.device(device, world)))


if __name__ == "__main__":
    cli.run(main)
