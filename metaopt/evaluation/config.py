"""The fields of an evaluation's configuration, and the hand-made optimizers that exist."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from metaopt.base.fields import (
    DtypeName,
    Positive,
    PositiveFloat,
    Seed,
    Text,
)
from metaopt.base.fields import Model as _Model
from metaopt.base.fields import described as _field
from metaopt.base.fields import required as _required
from metaopt.rules.baselines import BASELINES
from metaopt.tasks.config import ONLY_THE_LOSS
from metaopt.tasks.config import TaskConfig as TaskConfig

Grid = dict[str, Annotated[list[PositiveFloat | Positive | Literal[0]], Field(min_length=1)]]


def parse_baseline(name: str) -> tuple[str, int | None]:
    """``Adam@20`` -> (``Adam``, 20): tuned for step 20; without @, for the last step."""
    base, at, step = name.partition("@")
    if base not in BASELINES or (at and not (step.isdigit() and int(step) > 0)):
        known = ", ".join(BASELINES)
        raise ValueError(f"baselines are {known}, or one of them @STEP (Adam@20), found {name!r}")
    return base, int(step) if at else None


class TuningConfig(_Model):
    """How hand-made optimizers are tuned, on validation tasks."""

    tasks: Positive = _field(64, "number of validation tasks")
    seed: Seed = _field(0, "random seed of the validation tasks")
    grids: dict[str, Grid] = _required(
        "for each hand-made optimizer and each of its hyper-parameters, the values to try"
    )

    def grid(self, base: str) -> Grid:
        """What an optimizer is tuned over; empty for one without hyper-parameters."""
        return self.grids.get(base, {})

    @model_validator(mode="after")
    def _complete(self) -> TuningConfig:
        for name, grid in self.grids.items():
            if name not in BASELINES:
                raise ValueError(f"grids are for {', '.join(BASELINES)}, found {name!r}")
            if set(grid) != set(BASELINES[name].hyperparameters):
                wanted = ", ".join(BASELINES[name].hyperparameters)
                raise ValueError(f"the grid of {name} needs {wanted}, found {', '.join(grid)}")
            for parameter, values in grid.items():
                for value in values:
                    if not BASELINES[name].hyperparameters[parameter](value):
                        raise ValueError(f"the grid of {name}: {parameter} cannot be {value!r}")
        return self


class EvalConfig(_Model):
    """An evaluation on unseen tasks."""

    tasks: Positive = _field(256, "number of test tasks")
    task_seed: Seed = _field(0, "random seed of the test tasks")
    steps: Positive = _field(100, "number of inner steps")
    dtype: DtypeName = _field("float32", "precision of the trained networks and of the rules")
    task: TaskConfig = _field(TaskConfig(), "what is evaluated on")
    baselines: list[Text] = _field(
        [], "names of hand-made optimizers; `NAME@20` is tuned for step 20, `NAME` for the last one"
    )
    tuning: TuningConfig = _required("how hand-made optimizers are tuned")
    modules: list[Text] = _field(
        [], "modules of yours to import first, for rules of your own in checkpoints"
    )
    bootstrap: Positive = _field(2000, "number of resamplings behind the 95 % intervals")

    @model_validator(mode="after")
    def _baselines(self) -> EvalConfig:
        for name in self.baselines:
            base, _ = parse_baseline(name)
            if BASELINES[base].hyperparameters and base not in self.tuning.grids:
                raise ValueError(f"tuning.grids has no entry for {base}, which baselines asks for")
            if self.task.is_own and BASELINES[base].needs_network:
                raise ValueError(f"baselines: {ONLY_THE_LOSS} others than {base}")
        if self.task.more is not None:
            raise ValueError("task.more: is for meta-training; an evaluation has task.options")
        return self
