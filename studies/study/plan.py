"""What the study trains: resolved configurations, their folders, commands and budgets."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metaopt.base import checkpoint, config
from metaopt.base.checkpoint import Checkpoint, CheckpointError
from metaopt.base.errors import UserError
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.records import validation_score
from metaopt.meta.run_files import BEST_FILE, LAST_FILE, METRICS_FILE
from studies.output import ROOT
from studies.study.config import Row, StudyConfig

_TAIL = 16384
"""Bytes at the end of ``metrics.jsonl`` that hold its last rows."""


@dataclass(frozen=True)
class Budget:
    """What a row may use in meta-training.

    Attributes:
        trajectories: inner steps / inner steps of a trajectory.
        outer_steps: updates of phi.
        inner_steps: summed over trajectories.
        gradients: inner gradient evaluations.
    """

    trajectories: float
    outer_steps: int
    inner_steps: int
    gradients: float


def budget(settings: TrainConfig) -> Budget:
    """The budget of a training configuration.

    With W = ceil(steps / K) windows in a trajectory, N outer steps advance a meta-batch by
    (N div W) steps + min((N mod W) K, steps) inner steps.
    """
    meta = settings.meta
    windows = -(-meta.steps // meta.unroll)
    whole, rest = divmod(meta.outer_steps, windows)
    inner = whole * meta.steps + min(rest * meta.unroll, meta.steps)
    each = meta_optimizer(settings).gradients_per_step
    return Budget(
        trajectories=meta.batch * inner / meta.steps,
        outer_steps=meta.outer_steps,
        inner_steps=meta.batch * inner,
        gradients=each * meta.batch * inner,
    )


def override(field: str, value: Any) -> str:
    """``field=value`` as ``--set`` reads it."""
    return f"{field}={value if isinstance(value, str) else json.dumps(value)}"


@dataclass(frozen=True)
class Training:
    """One meta-training run, in a folder named after what it depends on.

    Attributes:
        name: of the row or ablation.
        config: file of the configuration.
        overrides: ``key=value``.
        out: folder of the study.
    """

    name: str
    config: str
    overrides: tuple[str, ...]
    out: Path

    @cached_property
    def settings(self) -> TrainConfig:
        """The resolved configuration; raises ``ConfigError``."""
        return config.load(TrainConfig, self.config, self.overrides)

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

    def arguments(self) -> list[str]:
        """Of ``train_meta.py``, without its folder."""
        sets = [part for text in self.overrides for part in ("--set", text)]
        return ["--config", self.config, *sets]

    def command(self, device: str) -> list[str]:
        """That trains it, or goes on with it."""
        place = ["--out", str(self.folder), "--device", device, "--resume"]
        return [sys.executable, str(ROOT / "train_meta.py"), *self.arguments(), *place]

    def shown(self) -> str:
        """The command for people."""
        return shlex.join(["python", "train_meta.py", *self.arguments()])

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
        """Mean log validation loss over the steps, at the best validation; less is better."""
        return validation_score(self.learned().validation["val_loss_geomean"])

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

    def progress(self) -> str:
        """For the bar, while it runs."""
        row = self.last_metrics()
        if not row:
            return f"{self.name} s{self.settings.seed}"
        done = row["outer_step"] / self.settings.meta.outer_steps
        meta_loss = "nan" if row["meta_loss"] is None else f"{row['meta_loss']:.3g}"
        return f"{self.name} s{self.settings.seed} {done:.0%} meta {meta_loss}"


@dataclass(frozen=True)
class Point:
    """A point of the search.

    Attributes:
        factor: on the outer learning rates.
        free: of the rule that moves the weights; None for that of the row.
    """

    factor: float = 1.0
    free: float | None = None


@dataclass(frozen=True)
class Planner:
    """Makes trainings of rows.

    Attributes:
        study: the study.
        out: its folder.
    """

    study: StudyConfig
    out: Path

    def training(
        self,
        row: Row,
        seed: int,
        share: float = 1.0,
        point: Point = Point(),
        ablation: str = "",
        changed: Mapping[str, Any] | None = None,
    ) -> Training:
        """A run of a row.

        Args:
            row: what is trained.
            seed: of meta-training.
            share: of its outer steps.
            point: of the search.
            ablation: its name, if it is one.
            changed: what the ablation changes.
        """
        name = f"{row.name}-{ablation}" if ablation else row.name
        task = {f"task.{key}": value for key, value in self.study.families[row.train].items()}
        layers = (self.study.groups[row.group], row.set, task, self.study.training_set)
        fields: dict[str, Any] = {}
        for layer in layers:
            fields |= layer
        if point.free is not None:
            rules = self._load(row, fields).rules
            fields[f"rules.{'update' if rules.update else 'step_teleport'}.free"] = point.free
        fields |= {**(changed or {}), "name": name, "seed": seed}
        settings = self._load(row, fields)
        fields |= {"meta.outer_steps": max(1, round(share * settings.meta.outer_steps))}
        for place, rule in settings.rules.by_name().items():
            if hasattr(rule, "outer_lr"):
                fields[f"rules.{place}.outer_lr"] = float(f"{point.factor * rule.outer_lr:.6g}")
        return Training(name, row.config, _sets(fields), self.out)

    def _load(self, row: Row, fields: Mapping[str, Any]) -> TrainConfig:
        try:
            return config.load(TrainConfig, row.config, _sets(fields))
        except UserError as error:
            raise UserError(f"row {row.name}: {error}") from None

    def searched(self, row: Row) -> dict[Point, Training]:
        """The runs of the search; none where there is nothing to choose."""
        share, points = self.study.search.share, self._points()
        if len(points) == 1:
            return {}
        seed = self.study.seeds[0]
        return {point: self.training(row, seed, share, point) for point in points}

    def chosen(self, row: Row) -> Point:
        """The point with the best score, once the search was run."""
        runs = self.searched(row)
        return min(runs, key=lambda point: runs[point].score()) if runs else self._points()[0]

    def _points(self) -> list[Point]:
        search = self.study.search
        return [Point(factor, free) for free in search.free for factor in search.factors]

    def check_budgets(self) -> dict[str, Budget]:
        """The budget of each row; raises ``UserError`` where a group's are not equal."""
        found = {row.name: budget(self._first(row).settings) for row in self.study.rows}
        for row in self.study.rows:
            first = next(other for other in self.study.rows if other.group == row.group)
            one, other = asdict(found[first.name]), asdict(found[row.name])
            for field, value in one.items():
                if value != other[field]:
                    raise UserError(
                        f"group {row.group}: budgets are not equal: {field} of {first.name} are "
                        f"{value:g}, of {row.name} {other[field]:g}; give meta.batch, "
                        f"meta.outer_steps, meta.steps and meta.unroll in groups.{row.group}"
                    )
        return found

    def _first(self, row: Row) -> Training:
        return self.training(row, self.study.seeds[0])


def _sets(fields: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(override(field, value) for field, value in fields.items())


def unfinished(trainings: Iterable[Training]) -> list[Training]:
    """Those still to be run, each once."""
    by_folder = {training.folder: training for training in trainings}
    return [training for training in by_folder.values() if not training.finished()]
