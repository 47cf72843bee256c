"""Contenders on test tasks, each result in a file of its own that is computed once.

    python -m studies.study.evaluation JOBS.json DEVICE

runs those of a list that are not there yet; the study starts it in processes of one thread.
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

from metaopt._version import __version__
from metaopt.base import cli
from metaopt.base.config import check
from metaopt.base.errors import MisfitError
from metaopt.base.files import write_atomically
from metaopt.base.process import World
from metaopt.evaluation.config import EvalConfig
from metaopt.evaluation.contenders import Contender, baseline_contenders, learned_contenders
from metaopt.evaluation.evaluate import run_contender, unseen_tasks

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """One contender on the test tasks of one family.

    Attributes:
        name: of the row with its seed, or of the hand-made optimizer.
        family: of the tasks.
        settings: of the evaluation; a hand-made optimizer is its only baseline.
        checkpoint: of a learned optimizer.
        folder: where results are kept.
    """

    name: str
    family: str
    settings: EvalConfig
    checkpoint: Path | None
    folder: Path

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

    def as_dict(self) -> dict[str, Any]:
        """As the process that runs it reads it."""
        return {
            "name": self.name,
            "family": self.family,
            "settings": self.settings.model_dump(mode="json"),
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "folder": str(self.folder),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """The inverse of ``as_dict``."""
        checkpoint = None if data["checkpoint"] is None else Path(data["checkpoint"])
        settings = check(EvalConfig, data["settings"], "study")
        return cls(data["name"], data["family"], settings, checkpoint, Path(data["folder"]))


@dataclass(frozen=True)
class Evaluated:
    """What a contender did.

    Attributes:
        losses: [steps + 1, tasks], as computed; None where it does not fit.
        about: name, kind, gradients_per_step, seconds_per_step, teleport and origin; or left_out.
    """

    losses: Array | None
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


def run_all(evaluations: Sequence[Evaluation], device: torch.device) -> None:
    """Those that are not there yet."""
    for evaluation in evaluations:
        if not evaluation.file.is_file():
            keep(evaluation, compute(evaluation, device))


def main(world: World) -> None:
    """Run a list."""
    listed, device = sys.argv[1:]
    content = json.loads(Path(listed).read_text(encoding="utf-8"))
    run_all([Evaluation.from_dict(data) for data in content], cli.device(device, world))


if __name__ == "__main__":
    cli.run(main)
