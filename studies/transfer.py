"""How far learned optimizers carry without meta-training again: other horizons, sizes and tasks.

    python -m studies.transfer [--checkpoints PATH ...] [--tasks 256] [--task-seed 0]
                                  [--device cpu|cuda|cuda:N] [--json FILE] [--write-page]

Every checkpoint, by default all of ``checkpoints/pretrained/`` that were meta-trained on this
family, runs on test tasks of each setting below, beside Adam tuned for the setting's last step (on
32 validation tasks, over the grid below).
A flattened rule is left out, with a line that says so, where shapes differ from its own. With more
samples than inputs the action through the data is not exact: there the checkpoint's
``teleporter.inexact`` is set to ``guard``, once with ``guard: refuse`` and once with
``guard: shrink``, at the tolerance that it has.

Tasks run in pieces of at most 2^17 rows (entries of all weights or of all generators), so that
memory does not grow with ``--tasks``.

``--write-page`` puts the table into ``docs/results/transfer.md``, all figures into
``transfer.json`` beside it, after every setting.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from metaopt.base import cli
from metaopt.base.config import check, load
from metaopt.base.errors import MisfitError, UserError
from metaopt.base.fields import DTYPES
from metaopt.base.loss_statistics import diverged, geomean
from metaopt.base.process import World
from metaopt.base.shipped import optimizers
from metaopt.base.streams import Stream
from metaopt.base.tables import markdown_table
from metaopt.evaluation.config import EvalConfig
from metaopt.evaluation.contenders import (
    Contender,
    baseline_contenders,
    learned_contenders,
    told_apart,
)
from metaopt.evaluation.evaluate import TUNED_BASELINES, Outcome, run_contender
from metaopt.optim import learned
from metaopt.rules.composed import MetaOptimizer
from metaopt.tasks.build import task_family
from metaopt.tasks.config import REGRESSION, TaskConfig
from metaopt.tasks.regression import layer_shapes
from metaopt.teleport.config import TeleporterConfig, engine
from studies.output import DOCS, Page, add_device, in_repository
from studies.study.evaluation import Array, excess, least_losses

PAGE = Page(DOCS / "transfer.md", "transfer table", "transfer")
ROWS = 2**17
SHOWN = (0, 10, 20, 50, 100, 1000)
"""Inner steps of the table, as far as a setting goes."""
TUNING = (
    "baselines=[Adam]",
    "tuning.tasks=32",
    "tuning.grids.Adam.lr=[0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3]",
    "tuning.grids.Adam.beta1=[0.5, 0.7, 0.9]",
    "tuning.grids.Adam.beta2=[0.5, 0.9, 0.999]",
)


@dataclass(frozen=True)
class Setting:
    """What is evaluated on."""

    name: str  # as it stands in the table
    # fields of the task family that are not the defaults
    task: dict[str, Any] = field(default_factory=dict)
    steps: int = 100  # inner steps
    # fields of the checkpoints' teleporters that are set
    teleporter: dict[str, str] = field(default_factory=dict)


SIZES = ("width", "inputs", "outputs", "samples")
GAUSSIAN = {"weights": "gaussian", "data": "gaussian"}
SETTINGS = (
    Setting("as trained"),
    Setting("horizon 1,000", steps=1000),
    *(Setting(f"width {width}", {"width": width}) for width in (5, 10, 40, 80)),
    Setting("all sizes 40", dict.fromkeys(SIZES, 40)),
    Setting("signed Gaussian data and weights", GAUSSIAN),
    Setting("4 layers", {"layers": 4}),
    Setting("4 layers, signed Gaussian", {"layers": 4} | GAUSSIAN),
    Setting("40 samples, refuse", {"samples": 40}, teleporter={"guard": "refuse"}),
    Setting("40 samples, shrink", {"samples": 40}, teleporter={"guard": "shrink"}),
)


@dataclass(frozen=True)
class Row:
    """One optimizer in one setting."""

    setting: str  # its name
    steps: int  # inner steps
    # whether loss 0 can be reached, see ``zero_is_reachable``; and the mean of the least
    # losses where they are above 0 and known, the losses shown being the excess over them
    zero: str
    optimizer: str  # its name
    kind: str  # learned or baseline
    left_out: str | None = None  # why there are no figures, or None
    # by inner step, at those of the table
    loss_geomean: dict[int, float] = field(default_factory=dict)
    diverged: int | None = None  # tasks whose loss was ever non-finite or above 10 times its first
    tasks: int | None = None  # that were run
    teleport: dict[str, float] | None = None  # as in ``results.json``, or None without teleports
    origin: dict[str, Any] = field(default_factory=dict)  # checkpoint, or tuned hyper-parameters


def zero_is_reachable(task: TaskConfig) -> str:
    """Whether some weights give loss 0 on almost all tasks of a family: yes, no or not known.

    Yes where the last hidden layer has a unit a sample: then H can have full column rank and
    W_L = Y H^+ fits. No where f(W) has a lower rank than Y, or where the weights, less the positive
    scaling of each hidden unit that changes nothing, are fewer than the m N outputs.
    """
    if task.width >= task.samples:
        return "yes"
    free = sum(out * fan_in for out, fan_in in layer_shapes(task))
    free -= task.width * (task.layers - 1)
    low_rank = task.width < min(task.outputs, task.samples)
    return "no" if low_rank or free < task.outputs * task.samples else "not known"


def known_least(config: EvalConfig) -> Array:
    """The least loss of each test task where it has a closed form, else 0, [tasks]."""
    task = config.task
    if task.layers > 2 or task.samples > task.inputs:
        return np.zeros(config.tasks)
    return least_losses(config)


def piece_size(task: TaskConfig) -> int:
    """Tasks that run side by side."""
    weights = sum(out * fan_in for out, fan_in in layer_shapes(task))
    entries = task.width**2 * (task.layers - 1)
    return max(1, ROWS // max(weights, entries))


def in_pieces(contender: Contender, config: EvalConfig, device: torch.device) -> Outcome:
    """One contender on all test tasks of a configuration, a piece after the other.

    Args:
        contender: what runs.
        config: tasks and steps.
        device: where to compute.

    Raises:
        MisfitError: where it does not fit the tasks.
    """
    if isinstance(contender.optimizer, MetaOptimizer):
        contender.optimizer.to(DTYPES[config.dtype])
    family, size = task_family(config.task), piece_size(config.task)
    outcomes = []
    for start in range(0, config.tasks, size):
        count = min(size, config.tasks - start)
        tasks = family.sample(
            Stream.TEST, config.task_seed, start, count, DTYPES[config.dtype], device
        )
        outcomes.append(run_contender(contender, tasks, config.steps, World()))
    return joined(outcomes)


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of one contender on several pieces of the tasks, as of all together."""
    sizes = np.array([outcome.losses.shape[1] for outcome in outcomes])
    summaries = [outcome.teleport for outcome in outcomes if outcome.teleport is not None]
    teleport = None
    if summaries:
        columns = {name: np.array([s[name] for s in summaries]) for name in summaries[0]}
        teleport = {
            name: float(column.max() if name.endswith("max") else np.average(column, weights=sizes))
            for name, column in columns.items()
        }
    return replace(
        outcomes[0],
        losses=np.concatenate([outcome.losses for outcome in outcomes], axis=1),
        seconds_per_step=sum(outcome.seconds_per_step for outcome in outcomes),
        teleport=teleport,
    )


def with_teleporter(contender: Contender, path: Path, fields: dict[str, str]) -> Contender:
    """The contender with an engine of its own configuration, some fields of it set.

    Args:
        contender: made from the checkpoint.
        path: of the checkpoint.
        fields: of its section ``teleporter``; none to leave it as it is.
    """
    config = learned.load(path).config
    own = config.teleporter
    # Other actions are exact on any data.
    if not fields or own is None or own.action != "through_data":
        return contender
    changed = check(
        TeleporterConfig,
        own.model_dump() | {"inexact": "guard"} | fields,
        f"{path}: teleporter",
    )
    assert isinstance(contender.optimizer, MetaOptimizer)
    contender.optimizer.engine = engine(changed, config.task)
    return contender


def of_this_family() -> list[Path]:
    """The shipped checkpoints that were meta-trained on the family of the settings."""
    return [path for path in optimizers() if learned.load(path).config.task.family == REGRESSION]


def contenders(
    setting: Setting, config: EvalConfig, paths: Sequence[Path], device: torch.device, world: World
) -> list[Contender]:
    """Checkpoints as the setting wants them, and tuned Adam."""
    loaded = [
        with_teleporter(contender, path, setting.teleporter)
        for path, contender in zip(
            paths, learned_contenders(paths, device, True, world), strict=True
        )
    ]
    return told_apart([*loaded, *baseline_contenders(config, device, TUNED_BASELINES, world)])


def evaluation(setting: Setting, tasks: int, task_seed: int, tuning: Sequence[str]) -> EvalConfig:
    """The evaluation of a setting; defaults are those of ``configs/eval.yaml``."""
    fields = [f"task.{name}={value}" for name, value in setting.task.items()]
    sizes = [f"tasks={tasks}", f"task_seed={task_seed}", f"steps={setting.steps}"]
    return load(EvalConfig, "eval.yaml", [*fields, *sizes, *tuning])


def rows(
    setting: Setting, config: EvalConfig, paths: Sequence[Path], device: torch.device, world: World
) -> list[Row]:
    """All optimizers in one setting; one that does not fit is a row that says so."""
    least = known_least(config)
    zero = zero_is_reachable(config.task)
    if least.any():
        zero = f"{zero}: excess over {least.mean():.3g}"
    found = []
    for contender in tqdm(
        contenders(setting, config, paths, device, world), desc=setting.name, leave=False
    ):
        row = Row(
            setting=setting.name,
            steps=setting.steps,
            zero=zero,
            optimizer=contender.name,
            kind=contender.kind,
            origin=in_repository(contender.origin),
        )
        try:
            outcome = in_pieces(contender, config, device)
        except MisfitError as error:
            world.say(f"left out: {contender.name}, {setting.name}: {error}")
            found.append(replace(row, left_out=str(error)))
            continue
        losses = excess(outcome.losses, least, config) if least.any() else outcome.losses
        curve = geomean(losses)
        found.append(
            replace(
                row,
                loss_geomean={step: float(curve[step]) for step in SHOWN if step <= setting.steps},
                diverged=diverged(outcome.losses),
                tasks=outcome.losses.shape[1],
                teleport=outcome.teleport,
            )
        )
    return found


def table(found: Sequence[Row]) -> str:
    """For people."""
    lines = []
    for row in found:
        start = [row.setting, row.zero, row.optimizer]
        if row.left_out is not None:
            lines.append([*start, *["" for _ in SHOWN], "left out", "", ""])
            continue
        losses = [f"{row.loss_geomean[s]:.3g}" if s in row.loss_geomean else "" for s in SHOWN]
        moved = row.teleport
        teleports = ["", ""]
        if moved is not None:
            teleports = [f"{100 * moved['refused_share']:.3g} %", f"{moved['drift_max']:.2g}"]
        lines.append([*start, *losses, f"{row.diverged} of {row.tasks}", *teleports])
    header = ["tasks", "loss 0", "optimizer", *map(str, SHOWN), "diverged", "refused"]
    return markdown_table([*header, "largest drift"], lines)


def page(content: Mapping[str, Any]) -> str:
    """What the page has of ``transfer.json``."""
    found = [
        Row(**row | {"loss_geomean": {int(k): v for k, v in row["loss_geomean"].items()}})
        for row in content["rows"]
    ]
    summary = f"{content['tasks']} test tasks a setting (task seed {content['task_seed']})."
    return f"{summary}\n\n{table(found)}"


def main(world: World) -> None:
    """Evaluate, print, write."""
    parser = argparse.ArgumentParser(description="Learned optimizers on tasks of other kinds.")
    parser.add_argument(
        "--checkpoints", nargs="+", type=Path, help="by default all that ship of this family"
    )
    parser.add_argument("--tasks", type=cli.positive, default=256)
    parser.add_argument("--task-seed", type=int, default=0)
    add_device(parser)
    arguments = PAGE.parse(parser)
    paths = arguments.checkpoints or of_this_family()
    if not paths:
        raise UserError("nothing to evaluate: none in checkpoints/pretrained/; name --checkpoints")
    device = cli.device(arguments.device, world)
    found: list[Row] = []
    for setting in SETTINGS:
        config = evaluation(setting, arguments.tasks, arguments.task_seed, TUNING)
        new = rows(setting, config, paths, device, world)
        print(f"\n{table(new)}", flush=True)
        found += new
        content = {
            "tasks": arguments.tasks,
            "task_seed": arguments.task_seed,
            "rows": [asdict(row) for row in found],
        }
        # After every setting: a run that is stopped keeps what it has.
        PAGE.save(arguments, content)
    PAGE.tell(arguments, page(content), content)


if __name__ == "__main__":
    cli.run(main)
