"""The study in its folder: search, meta-training, evaluation; each part is done once.

    training/NAME-sSEED-HASH/   runs of ``train_meta.py``
    evaluations/                losses of each contender on each family
    logs/                       what the processes printed

Whatever is there already is not done again, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from metaopt.base import config
from metaopt.base.files import write_atomically
from metaopt.base.loss_statistics import clean
from metaopt.evaluation.config import EvalConfig
from studies.study import jobs
from studies.study.compared import Compared, RunOf
from studies.study.config import Ablation, Row, StudyConfig
from studies.study.evaluation import Evaluation, read
from studies.study.jobs import Job
from studies.study.least import excess, least_losses
from studies.study.plan import Planner, Training, override, unfinished


@dataclass(frozen=True)
class Study:
    """A study in a folder.

    Attributes:
        settings: of the study.
        out: its folder.
        device: auto, cpu, cuda or cuda:N.
    """

    settings: StudyConfig
    out: Path
    device: str

    @property
    def planner(self) -> Planner:
        """Of trainings."""
        return Planner(self.settings, self.out)

    def search(self, rows: Iterable[Row]) -> None:
        """Run the search of some rows."""
        runs = [run for row in rows for run in self.planner.searched(row).values()]
        self._train(runs, "search")

    def trainings(self, row: Row) -> list[Training]:
        """One a seed, at the point that the search chose."""
        point = self.planner.chosen(row)
        return [self.planner.training(row, seed, point=point) for seed in self.settings.seeds]

    def ablated(self, ablation: Ablation | None, row: Row) -> Training:
        """An ablation of a row, or with None the row itself, at the budget of ablations."""
        changed = {} if ablation is None else ablation.set
        return self.planner.training(
            row,
            self.settings.seeds[0],
            self.settings.ablations.share,
            self.planner.chosen(row),
            "" if ablation is None else ablation.name,
            changed,
        )

    def train(self, runs: Sequence[Training]) -> None:
        """Run what is not finished."""
        self._train(runs, "meta-training")

    def _train(self, runs: Sequence[Training], what: str) -> None:
        listed = [
            Job(
                f"{run.name} s{run.settings.seed}",
                tuple(run.command(self.device)),
                self.out / "logs" / f"{run.folder.name}.txt",
                run.progress,
                partial(_trained, run),
            )
            for run in unfinished(runs)
        ]
        jobs.run(listed, self.settings.jobs, what)

    def evaluation_settings(self, family: str, baselines: Sequence[str] = ()) -> EvalConfig:
        """Of the test tasks of a family."""
        study = self.settings
        task = {f"task.{key}": value for key, value in study.families[family].items()}
        fields = {
            **study.evaluation_set,
            **task,
            "tasks": study.tasks,
            "task_seed": study.task_seed,
            "steps": study.steps,
            "baselines": list(baselines),
        }
        sets = [override(field, value) for field, value in fields.items()]
        return config.load(EvalConfig, study.evaluation, sets)

    def of_learned(self, run: Training, family: str) -> Evaluation:
        """The evaluation of a run on a family."""
        name = f"{run.name} s{run.settings.seed}"
        settings = self.evaluation_settings(family)
        return Evaluation(name, family, settings, run.checkpoint, self.out / "evaluations")

    def of_hand_made(self, name: str, family: str) -> Evaluation:
        """The tuning and evaluation of a hand-made optimizer on a family."""
        settings = self.evaluation_settings(family, [name])
        return Evaluation(name, family, settings, None, self.out / "evaluations")

    def evaluate(self, listed: Sequence[Sequence[Evaluation]]) -> None:
        """Run what is not there; each group in one process."""
        waiting = []
        for group in listed:
            missing = [evaluation for evaluation in group if not evaluation.file.is_file()]
            if missing:
                waiting.append(missing)
        jobs.run([self._job(group) for group in waiting], self.settings.jobs, "evaluation")

    def _job(self, group: Sequence[Evaluation]) -> Job:
        stem = group[0].file.stem
        file = self.out / "evaluations" / f"{stem}.json"
        content = json.dumps([evaluation.as_dict() for evaluation in group])
        write_atomically(file, content.encode())
        module = "studies.study.evaluation"
        return Job(
            group[0].name,
            (sys.executable, "-m", module, str(file), self.device),
            self.out / "logs" / f"{stem}.txt",
            partial(_progress, group),
            partial(_evaluated, group),
        )

    def compared(
        self, name: str, label: str, kind: str, evaluations: Sequence[tuple[int | None, Evaluation]]
    ) -> tuple[Compared | None, str]:
        """A contender from its kept results; None and the reason where it was left out.

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
                return None, f"{label} on {evaluation.family}: {found.about['left_out']}"
            least = least_losses(evaluation.settings)
            losses = clean(found.losses)
            if least.any():
                losses = excess(found.losses, least, evaluation.settings)
            runs.append(RunOf(seed, losses, found.losses, found.about))
        kind = runs[0].about["kind"] if kind == "baseline" else kind
        return Compared(name, label, kind, runs), ""


def _trained(run: Training) -> str:
    curve = run.learned().validation["val_loss_geomean"]
    seconds = run.last_metrics().get("seconds", float("nan"))
    return (
        f"{run.name} s{run.settings.seed}: validation loss {curve[-1]:.3g} at step "
        f"{len(curve) - 1}, score {run.score():.3f}, {seconds:.0f} s"
    )


def _progress(group: Sequence[Evaluation]) -> str:
    done = sum(evaluation.file.is_file() for evaluation in group)
    return f"{group[0].name} {done}/{len(group)}"


def _evaluated(group: Sequence[Evaluation]) -> str:
    lines = []
    for evaluation in group:
        found = read(evaluation)
        if found.losses is None:
            lines.append(f"{evaluation.name} on {evaluation.family}: {found.about['left_out']}")
        else:
            last = clean(found.losses)[-1]
            median = float(sorted(last)[len(last) // 2])
            lines.append(f"{evaluation.name} on {evaluation.family}: median loss {median:.3g}")
    return "\n".join(lines)
