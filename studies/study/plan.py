"""What a study runs: resolved configurations, their folders, commands and budgets.

    training/NAME-sSEED-HASH/   runs of ``train_meta.py``
    evaluations/                losses of each contender on each family
    logs/                       what the processes printed

Whatever is there already is not done again, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metaopt.base import checkpoint, config
from metaopt.base.checkpoint import Checkpoint, CheckpointError
from metaopt.base.errors import UserError
from metaopt.evaluation.config import EvalConfig
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.run_files import BEST_FILE, LAST_FILE, METRICS_FILE
from metaopt.meta.validation import validation_score
from studies import pool
from studies.output import ROOT
from studies.study import evaluation
from studies.study.config import Ablation, Row, StudyConfig
from studies.study.evaluation import Evaluation

_TAIL = 16384
"""Bytes at the end of ``metrics.jsonl`` that hold its last rows."""


@dataclass(frozen=True)
class Budget:
    """What a row may use in meta-training."""

    trajectories: float  # inner steps / inner steps of a trajectory
    outer_steps: int  # updates of phi
    inner_steps: int  # summed over trajectories
    gradients: float  # inner gradient evaluations


def budget(settings: TrainConfig) -> Budget:
    """The budget of a training configuration.

    With W = ceil(steps / K) windows in a trajectory, N outer steps advance a meta-batch by
    (N div W) steps + min((N mod W) K, steps) inner steps.
    """
    meta = settings.meta
    windows = -(-meta.steps // meta.unroll)
    whole, rest = divmod(meta.outer_steps, windows)
    inner = meta.batch * (whole * meta.steps + min(rest * meta.unroll, meta.steps))
    each = meta_optimizer(settings).gradients_per_step
    return Budget(inner / meta.steps, meta.outer_steps, inner, each * inner)


def _sets(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """``field=value`` as ``--set`` reads them."""
    return tuple(
        f"{field}={value if isinstance(value, str) else json.dumps(value)}"
        for field, value in fields.items()
    )


@dataclass(frozen=True)
class Training:
    """One meta-training run, in a folder named after what it depends on."""

    name: str  # of the row or ablation
    config: str  # file of the configuration
    overrides: tuple[str, ...]  # ``key=value``
    out: Path  # folder of the study

    @cached_property
    def settings(self) -> TrainConfig:
        """The resolved configuration; raises ``ConfigError``."""
        return config.load(TrainConfig, self.config, self.overrides)

    @property
    def title(self) -> str:
        """Name and seed."""
        return f"{self.name} s{self.settings.seed}"

    @cached_property
    def folder(self) -> Path:
        """Another configuration is another folder: a changed row is trained afresh."""
        resolved = self.settings.model_dump_json().encode()
        digest = hashlib.sha256(resolved).hexdigest()[:8]
        return self.out / "training" / f"{self.name}-s{self.settings.seed}-{digest}"

    @property
    def checkpoint(self) -> Path:
        """The learned optimizer, best by validation."""
        return self.folder / BEST_FILE

    def _arguments(self) -> list[str]:
        sets = [part for text in self.overrides for part in ("--set", text)]
        return ["--config", self.config, *sets]

    def shown(self) -> str:
        """The command for people, without its folder."""
        return shlex.join(["python", "train_meta.py", *self._arguments()])

    def job(self, device: str) -> pool.Job:
        """The command that trains it, or goes on with it."""
        script = [sys.executable, str(ROOT / "train_meta.py"), *self._arguments()]
        command = [*script, "--out", str(self.folder), "--device", device, "--resume"]
        log = self.out / "logs" / f"{self.folder.name}.txt"
        return pool.Job(self.title, tuple(command), log, self._progress, self._result)

    def finished(self) -> bool:
        """Whether all outer steps were taken."""
        try:
            last = checkpoint.read(self.folder / LAST_FILE)
        except CheckpointError:
            return False
        return last.training.get("outer_step") == self.settings.meta.outer_steps

    def learned(self) -> Checkpoint:
        """What was learned; raises ``CheckpointError``."""
        return checkpoint.read(self.checkpoint)

    def score(self) -> float:
        """The score of the best validation; less is better."""
        curve = self.learned().validation["val_loss_geomean"]
        return validation_score(curve, self.settings.meta.epsilon)

    def last_metrics(self) -> dict[str, Any]:
        """The last row of an outer step, or an empty one."""
        try:
            with (self.folder / METRICS_FILE).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                lines = file.read().splitlines()
        except OSError:
            return {}
        for line in reversed(lines):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if "inner_steps" in row:
                return row
        return {}

    def _progress(self) -> str:
        row = self.last_metrics()
        if not row:
            return self.title
        done = row["outer_step"] / self.settings.meta.outer_steps
        meta_loss = "nan" if row["meta_loss"] is None else f"{row['meta_loss']:.3g}"
        return f"{self.title} {done:.0%} meta {meta_loss}"

    def _result(self) -> str:
        curve = self.learned().validation["val_loss_geomean"]
        seconds = self.last_metrics().get("seconds", float("nan"))
        return (
            f"{self.title}: validation loss {curve[-1]:.3g} at step {len(curve) - 1}, "
            f"score {self.score():.3f}, {seconds:.0f} s"
        )


@dataclass(frozen=True)
class Point:
    """A point of the search."""

    factor: float = 1.0  # on the outer learning rates
    free: float | None = None  # of the rule that moves the weights; None for that of the row


@dataclass(frozen=True)
class Study:
    """A study in a folder: its trainings and evaluations, each done once."""

    settings: StudyConfig  # of the study
    out: Path  # its folder
    device: str  # auto, cpu, cuda or cuda:N

    def training(
        self,
        row: Row,
        seed: int,
        share: float = 1.0,
        point: Point = Point(),
        ablation: Ablation | None = None,
    ) -> Training:
        """A run of a row.

        Args:
            row: what is trained.
            seed: of meta-training.
            share: of its outer steps.
            point: of the search.
            ablation: what is changed in the row, if it is one.
        """
        study = self.settings
        name = row.name if ablation is None else f"{row.name}-{ablation.name}"
        fields = study.groups[row.group] | row.set
        fields |= {f"task.{key}": value for key, value in study.families[row.train].items()}
        fields |= study.training_set
        if point.free is not None:
            rules = self._load(row, fields).rules
            fields[f"rules.{'update' if rules.update else 'step_teleport'}.free"] = point.free
        if ablation is not None:
            fields |= ablation.set
        fields |= {"name": name, "seed": seed}
        settings = self._load(row, fields)
        fields["meta.outer_steps"] = max(1, round(share * settings.meta.outer_steps))
        for place, rule in settings.rules.by_name().items():
            if "outer_lr" in type(rule).model_fields:
                rate = float(f"{point.factor * rule.learning_rate:.6g}")
                fields[f"rules.{place}.outer_lr"] = rate
        return Training(name, row.config, _sets(fields), self.out)

    def _load(self, row: Row, fields: Mapping[str, Any]) -> TrainConfig:
        try:
            return config.load(TrainConfig, row.config, _sets(fields))
        except UserError as error:
            raise UserError(f"row {row.name}: {error}") from None

    def _points(self) -> list[Point]:
        search = self.settings.search
        return [Point(factor, free) for free in search.free for factor in search.factors]

    def searched(self, row: Row) -> dict[Point, Training]:
        """The runs of the search; none where there is nothing to choose."""
        share, points = self.settings.search.share, self._points()
        if len(points) == 1:
            return {}
        return {point: self.training(row, self.settings.seeds[0], share, point) for point in points}

    def chosen(self, row: Row) -> Point:
        """The point with the best score, once the search was run."""
        runs = self.searched(row)
        return min(runs, key=lambda point: runs[point].score()) if runs else self._points()[0]

    def trainings(self, row: Row) -> list[Training]:
        """One a seed, at the point that the search chose."""
        point = self.chosen(row)
        return [self.training(row, seed, point=point) for seed in self.settings.seeds]

    def ablated(self, row: Row, ablation: Ablation | None = None) -> Training:
        """An ablation of a row, or the row itself, at the first seed and the ablations' budget."""
        share = self.settings.ablations.share
        return self.training(row, self.settings.seeds[0], share, self.chosen(row), ablation)

    def check_budgets(self) -> None:
        """Raise ``UserError`` where the budgets of a group are not equal."""
        firsts: dict[str, tuple[str, dict[str, float]]] = {}
        for row in self.settings.rows:
            own = asdict(budget(self.training(row, self.settings.seeds[0]).settings))
            name, other = firsts.setdefault(row.group, (row.name, own))
            for field, value in other.items():
                if value != own[field]:
                    raise UserError(
                        f"group {row.group}: budgets are not equal: {field} of {name} are "
                        f"{value:g}, of {row.name} {own[field]:g}; give meta.batch, "
                        f"meta.outer_steps, meta.steps and meta.unroll in groups.{row.group}"
                    )

    def train(self, runs: Iterable[Training], what: str = "meta-training") -> None:
        """Run what is not finished, each once."""
        by_folder = {run.folder: run for run in runs}
        jobs = [run.job(self.device) for run in by_folder.values() if not run.finished()]
        pool.run(jobs, self.settings.jobs, what)

    def evaluation(self, family: str, name: str = "", checkpoint: Path | None = None) -> Evaluation:
        """Of one contender on the test tasks of a family.

        Args:
            family: of the tasks.
            name: of the run with its seed, or of a hand-made optimizer.
            checkpoint: of a learned optimizer.
        """
        study = self.settings
        task = {f"task.{key}": value for key, value in study.families[family].items()}
        fields = {
            **study.evaluation_set,
            **task,
            "tasks": study.tasks,
            "task_seed": study.task_seed,
            "steps": study.steps,
            "baselines": [name] if name and checkpoint is None else [],
        }
        settings = config.load(EvalConfig, study.evaluation, _sets(fields))
        return Evaluation(
            name=name,
            family=family,
            settings=settings,
            checkpoint=checkpoint,
            folder=self.out / "evaluations",
        )

    def of_run(self, run: Training, family: str) -> Evaluation:
        """Of a learned optimizer."""
        return self.evaluation(family, run.title, run.checkpoint)

    def evaluate(self, groups: Iterable[Sequence[Evaluation]]) -> None:
        """Run what is not there; each group in one process."""
        missing = [[one for one in group if not one.file.is_file()] for group in groups]
        jobs = [evaluation.job(group, self.out, self.device) for group in missing if group]
        pool.run(jobs, self.settings.jobs, "evaluation")
