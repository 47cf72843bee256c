"""``study.json`` and ``ablations.json``: all figures, from which tables and figure are made."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from typing import Any

from metaopt._version import __version__
from metaopt.base.checkpoint import read
from metaopt.base.loss_statistics import resamples
from metaopt.meta.run_files import LAST_FILE
from studies.output import ROOT
from studies.study.claims import checked
from studies.study.compared import Compared, Index, as_dict, ratios, shown_steps
from studies.study.evaluation import sha256
from studies.study.least import least_losses
from studies.study.plan import Training, budget
from studies.study.study import Study


def summarised(
    study: Study, contenders: Mapping[str, Sequence[Compared]], left_out: Sequence[str]
) -> dict[str, Any]:
    """The content of ``study.json``.

    Args:
        study: with everything trained and evaluated.
        contenders: by family.
        left_out: lines that say why others are not there.
    """
    settings = study.settings
    index = _index(study)
    rows = {row.name: _row(study, row.name) for row in settings.rows}
    claimed = {bar.row for bar in settings.bars}
    families = {}
    for family, of_family in contenders.items():
        least = least_losses(study.evaluation_settings(family))
        families[family] = {
            "changed": settings.families[family],
            "config": study.evaluation_settings(family).model_dump(mode="json"),
            "least_mean": float(least.mean()),
            "contenders": {c.name: as_dict(c, index) for c in of_family},
            "pairs": [
                pair
                for a in of_family
                if a.name in claimed
                for b in of_family
                if b is not a
                for pair in ratios(a, b, index)
            ],
        }
    return {
        **_about(study),
        "rows": rows,
        "families": families,
        "claims": checked(settings, contenders, index),
        "costs": _costs(study, rows, families),
        "left_out": list(left_out),
    }


def ablated(study: Study, contenders: Sequence[Compared]) -> dict[str, Any]:
    """The content of ``ablations.json``; the row itself stands before its ablations."""
    index = _index(study)
    by_name = {contender.name: contender for contender in contenders}
    found = []
    for ablation in study.settings.ablations.rows:
        name = f"{ablation.row}-{ablation.name}"
        if name in by_name and ablation.row in by_name:
            found += ratios(by_name[name], by_name[ablation.row], index)
    return {
        **_about(study),
        "contenders": {c.name: as_dict(c, index) for c in contenders},
        "pairs": found,
    }


def _index(study: Study) -> Index:
    settings = study.settings
    bootstrap = study.evaluation_settings(next(iter(settings.families))).bootstrap
    return resamples(settings.tasks, bootstrap, settings.task_seed)


def _about(study: Study) -> dict[str, Any]:
    settings = study.settings
    return {
        "metaopt_version": __version__,
        "commit": commit(),
        "dirty": bool(_git("status", "--porcelain")),
        "config": settings.model_dump(mode="json"),
        "steps_shown": shown_steps(settings.steps),
    }


def commit() -> str | None:
    """Of the code, where it is a git repository."""
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _row(study: Study, name: str) -> dict[str, Any]:
    """What a row was trained with, and what that took."""
    row = study.settings.row(name)
    runs = study.trainings(row)
    learned = runs[0].learned()
    return {
        "label": runs[0].settings.label,
        "group": row.group,
        "train": row.train,
        "config": runs[0].settings.model_dump(mode="json"),
        "parameters": sum(prod(tensor.shape) for tensor in learned.tensors.values()),
        "budget": asdict(budget(runs[0].settings)),
        "chosen": asdict(study.planner.chosen(row)),
        "search": [
            {**asdict(point), "score": run.score(), **_run(run)}
            for point, run in study.planner.searched(row).items()
        ],
        "runs": [_run(run) for run in runs],
    }


def _run(run: Training) -> dict[str, Any]:
    last, metrics = read(run.folder / LAST_FILE), run.last_metrics()
    return {
        "seed": run.settings.seed,
        "folder": run.folder.name,
        "command": run.shown(),
        "sha256": sha256(run.checkpoint),
        "seconds": metrics["seconds"],
        "inner_steps": metrics["inner_steps"],
        "trajectories": last.training["trajectories"],
        "skipped": last.training["skipped"],
        "best_outer_step": run.learned().validation["outer_step"],
    }


def _costs(study: Study, rows: Mapping[str, Any], families: Mapping[str, Any]) -> dict[str, Any]:
    evaluated = sum(
        run["seconds_per_step"] * study.settings.steps
        for about in families.values()
        for entry in about["contenders"].values()
        for run in entry["runs"]
    )
    return {
        "training": sum(run["seconds"] for row in rows.values() for run in row["runs"]),
        "search": sum(run["seconds"] for row in rows.values() for run in row["search"]),
        "evaluation": evaluated,
        "as_planned": all(
            run["inner_steps"] == row["budget"]["inner_steps"]
            for row in rows.values()
            for run in row["runs"]
        ),
    }
