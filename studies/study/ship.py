"""Checkpoints that are shipped: those of the first seed, with the figures of the study inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaopt.base import checkpoint
from metaopt.base.checkpoint import Checkpoint
from metaopt.base.errors import UserError
from studies.study.study import Study


def ship(study: Study, found: dict[str, Any], folder: Path) -> list[Path]:
    """Copy the first seed of every learned row that stands for one of the default configurations.

    A row does if it is named as its configuration file and trained on the family ``default``.

    Args:
        study: finished.
        found: the content of ``study.json``.
        folder: where they go, named after their configuration.

    Returns:
        The files written; raises ``UserError`` where no row stands for a default configuration.
    """
    written = []
    for row in study.settings.learned:
        if f"{row.name}.yaml" != Path(row.config).name or row.train != "default":
            continue
        run = study.trainings(row)[0]
        learned = run.learned()
        training = learned.training | {"commit": found["commit"], "command": run.shown()}
        validation = learned.validation | {"test": _figures(found, row.name)}
        path = folder / f"{row.name}.safetensors"
        checkpoint.write(path, Checkpoint(learned.tensors, learned.config, training, validation))
        written.append(path)
    if not written:
        raise UserError("--ship: no learned row is named as its configuration file")
    return written


def _figures(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Of the first seed, by family."""
    config = found["config"]
    figures = {}
    for family, about in found["families"].items():
        if name in about["contenders"]:
            run = about["contenders"][name]["runs"][0]
            figures[family] = {
                "tasks": config["tasks"],
                "task_seed": config["task_seed"],
                "task": about["changed"],
                "least_loss_mean": about["least_mean"],
                "loss_geomean_above_least": run["at"],
                "diverged": run["diverged"],
                "teleport": run["teleport"],
            }
    return figures
