"""The figures that a checkpoint carries in its metadata, checked and as tables.

A validation curve comes from meta-training. Figures on unseen tasks, by task family, are added by
whoever evaluated the optimizer (``studies.study`` for those that are shipped).
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from metaopt.base.config import check
from metaopt.base.tables import markdown_table, printable, validation_table


class _Model(BaseModel):
    """Further fields are let through: who evaluates may add what this version does not show."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class AtStep(_Model):
    """Geometric mean over tasks at one inner step, with its 95 % interval."""

    geomean: float
    ci95: list[float]


class Unseen(_Model):
    """Figures on unseen tasks of one family.

    Attributes:
        tasks: how many unseen tasks.
        task_seed: the seed of the tasks.
        task: fields of ``task`` that differ from the defaults.
        least_loss_mean: mean of the least loss there is.
        loss_geomean_above_least: loss less the least, by inner step.
        diverged: tasks that diverged.
        teleport: ``TeleportTrace.summary``, or None without teleports.
    """

    tasks: int
    task_seed: int
    task: dict[str, Any]
    least_loss_mean: float
    loss_geomean_above_least: dict[str, AtStep]
    diverged: int
    teleport: dict[str, float] | None = None


class Figures(_Model):
    """All figures of a checkpoint.

    Attributes:
        outer_step: the outer step of the validation.
        val_loss_geomean: validation loss by inner step.
        test: by task family.
    """

    outer_step: int | None = None
    val_loss_geomean: list[float] = []
    test: dict[str, Unseen] = {}


def figures(validation: dict[str, Any], source: str) -> Figures:
    """The field ``validation`` of a checkpoint, checked; raises ``ConfigError``, one line."""
    return check(Figures, validation, f"{source}: metadata field validation")


def validation_section(found: Figures) -> str:
    """The validation curve at a few inner steps; a sentence where there is none."""
    if not found.val_loss_geomean:
        return "No validation figures are in the file."
    at = "" if found.outer_step is None else f", at outer step {found.outer_step}"
    return (
        f"Geometric mean over the validation tasks{at}:\n\n"
        f"{validation_table(found.val_loss_geomean)}"
    )


def unseen_sections(found: Figures) -> list[str]:
    """A table for each family that was tested on; a sentence where there is none."""
    if not found.test:
        return ["No figures on unseen tasks are in the file; `metaopt eval` makes some."]
    return [_unseen_section(family, of_family) for family, of_family in found.test.items()]


def _unseen_section(family: str, of: Unseen) -> str:
    changed = ", ".join(f"{name} {value}" for name, value in of.task.items())
    title = printable(f"Family {family}" + (f" ({changed})" if changed else ""))
    rows = [
        [printable(step), f"{at.geomean:.3g}", " to ".join(f"{bound:.3g}" for bound in at.ci95)]
        for step, at in of.loss_geomean_above_least.items()
    ]
    above = (
        "" if of.least_loss_mean == 0 else f" above the least (its mean: {of.least_loss_mean:.3g})"
    )
    closing = f"Diverged: {of.diverged} of {of.tasks} tasks."
    if of.teleport is not None:
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in of.teleport.items())
        closing += printable(f" Teleports: {numbers}.").replace("_", " ")
    return (
        f"{title}: loss{above}, geometric mean over {of.tasks} unseen tasks (seed {of.task_seed}):"
        f"\n\n{markdown_table(['inner step', 'loss', '95 % interval'], rows)}\n\n{closing}"
    )
