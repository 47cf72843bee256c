"""Evaluation: run all optimizers on the same unseen tasks, and compare them.

    ratio of a to b at step t = exp(mean over tasks of log(L_a(w_t) / L_b(w_t)))

Each optimizer runs all tasks side by side in the inner loop of ``meta.unroll``, many of them in
parts (``Tasks.in_parts``). Losses are those of the current weights; index 0 is the loss before the
first step. With N processes each one runs its own slice of the tasks; the first one collects all
losses and writes the files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from metaopt.base.errors import MisfitError, UserError
from metaopt.base.fields import DTYPES
from metaopt.base.files import make_folder, write_together
from metaopt.base.loss_statistics import (
    CEILING,
    clean,
    diverged,
    geomean,
    geomean_interval,
    ratio_of,
    resamples,
)
from metaopt.base.process import World
from metaopt.base.stopwatch import Stopwatch
from metaopt.base.streams import Stream
from metaopt.evaluation.config import EvalConfig
from metaopt.evaluation.contenders import (
    Contender,
    baseline_contenders,
    learned_contenders,
    told_apart,
)
from metaopt.evaluation.figure import convergence_figure
from metaopt.evaluation.overlay import overlay_runs
from metaopt.evaluation.report import curves_csv, results_table, teleport_table, tuning_lines
from metaopt.meta.shares import gathered
from metaopt.meta.unroll import rollout_in_turn
from metaopt.optim.reach import PAGE
from metaopt.rules.composed import Optimizer
from metaopt.tasks.base import Tasks
from metaopt.tasks.build import task_family
from metaopt.tasks.own import module_of
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.base import TeleportTrace

Array = NDArray[np.float64]

PAIR_STEPS = (1, 10, 20, 50, 100)
TUNED_BASELINES = Path("runs/tuned_baselines.json")
"""Cache of tuned hyper-parameters, whatever folder the results go to."""


@dataclass(frozen=True)
class Outcome:
    """The result of one contender.

    Attributes:
        contender: the optimizer that ran.
        losses: the losses as computed, float64 [steps + 1, tasks].
        seconds_per_step: the wall-clock time of one inner step of the whole batch in the slowest
            process: the gradient evaluation and the optimizer's own work. Judging on test data
            and measuring teleports are not counted.
        teleport: the numbers of ``summarise``, or None without teleports.
    """

    contender: Contender
    losses: Array
    seconds_per_step: float
    teleport: dict[str, float] | None


def run_contender(contender: Contender, tasks: Tasks, steps: int, world: World) -> Outcome:
    """Run a contender on all tasks, timed after a short warm-up; many of them in parts.

    Args:
        contender: the optimizer that runs.
        tasks: the tasks of this process.
        steps: the number of inner steps.
        world: the processes that share the tasks.

    Raises:
        MisfitError: if the optimizer does not fit the tasks of any process.
    """
    # The warm-up also computes what depends on the tasks alone, such as X^+.
    parts = tasks.in_parts()
    misfits = world.gather(_misfit(contender.optimizer, parts, min(steps, 2)))
    # Tasks differ in their data: an action may be exact on one process's and not on another's.
    for misfit in misfits:
        if misfit is not None:
            raise misfit
    watch = Stopwatch(tasks.initial[0].device)
    own_losses, own_teleports = rollout_in_turn(parts, contender.optimizer, steps, watch)
    seconds = max(world.gather(watch.seconds))
    losses, teleports = gathered(world, own_losses, own_teleports)
    return Outcome(
        contender,
        losses.double().numpy(),
        seconds / steps,
        None if teleports is None else summarise(teleports),
    )


def _misfit(optimizer: Optimizer, parts: Sequence[Tasks], steps: int) -> Exception | None:
    """The error that says why an optimizer does not fit the tasks; None if it fits."""
    try:
        rollout_in_turn(parts, optimizer, steps)
    except MisfitError as error:
        return error
    return None


def summarise(teleports: TeleportTrace) -> dict[str, float]:
    """The four numbers of ``TeleportTrace.summary``, all finite."""
    numbers = {name: float(value) for name, value in teleports.summary().items()}
    # As for losses: what is not finite counts as very large, so that the file stays valid JSON.
    return {
        name: float(np.nan_to_num(number, nan=CEILING, posinf=CEILING, neginf=-CEILING))
        for name, number in numbers.items()
    }


def unseen_tasks(config: EvalConfig, device: torch.device, world: World) -> TaskBatch:
    """Draw this process's share of the unseen tasks; raises ``UserError`` if it has none."""
    share = world.share(config.tasks, "tasks")
    dtype = DTYPES[config.dtype]
    family = task_family(config.task)
    drawn = family.sample(Stream.TEST, config.task_seed, 0, config.tasks, dtype, device)
    return drawn.select(share)


def evaluate(
    config: EvalConfig, contenders: Sequence[Contender], tasks: Tasks, world: World
) -> list[Outcome]:
    """Run all contenders on the same test tasks.

    A contender that does not fit the tasks is left out, and a line says so.

    Args:
        config: the configuration of the evaluation.
        contenders: the optimizers; networks are cast to ``config.dtype``.
        tasks: the tasks of this process.
        world: the processes that share the tasks.

    Raises:
        UserError: if no contender fits.
    """
    outcomes = []
    bar = tqdm(contenders, desc="evaluating", disable=not world.first)
    for contender in bar:
        bar.set_postfix_str(contender.name)
        fitted = contender.optimizer
        if isinstance(fitted, torch.nn.Module):
            fitted.to(DTYPES[config.dtype])
        try:
            outcomes.append(run_contender(contender, tasks, config.steps, world))
        except MisfitError as error:
            world.say(f"left out: {contender.name}: {error}")
    if not outcomes:
        raise UserError("nothing is left to evaluate: no optimizer fits these tasks")
    return outcomes


def tell_horizons(contenders: Sequence[Contender], steps: int, world: World) -> None:
    """Print a line for each learned optimizer that will run past its trained and tested steps."""
    for contender in contenders:
        if contender.reach is not None and steps > contender.reach.steps:
            world.say(
                f"past its horizon: {contender.name}: steps is {steps:,}, but it was "
                f"{contender.reach}: {PAGE}"
            )


def curves(outcomes: Sequence[Outcome], index: NDArray[np.int64]) -> dict[str, dict[str, Array]]:
    """Statistics over tasks by inner step, [steps + 1], for each optimizer by name.

    They are ``mean``, ``geomean``, its 95 % interval (``low``, ``high``), the quantiles ``q05`` and
    ``q95``, and ``seconds`` since the start.

    Args:
        outcomes: the results of the optimizers.
        index: the tasks in each bootstrap sample (``resamples``).
    """
    result = {}
    for outcome in outcomes:
        losses = clean(outcome.losses)
        low, high = geomean_interval(losses, index)
        q05, q95 = np.quantile(losses, [0.05, 0.95], axis=1)
        result[outcome.contender.name] = {
            "mean": losses.mean(axis=1),
            "geomean": geomean(losses),
            "low": low,
            "high": high,
            "q05": q05,
            "q95": q95,
            "seconds": outcome.seconds_per_step * np.arange(len(losses)),
        }
    return result


def pairs(
    outcomes: Sequence[Outcome], steps: int, index: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Compare every ordered pair: the rows ``pairs`` of ``results.json``.

    Args:
        outcomes: the results of the optimizers.
        steps: the last inner step; pairs are compared there and at ``PAIR_STEPS`` before it.
        index: the tasks in each bootstrap sample (``resamples``).
    """
    at = sorted({step for step in PAIR_STEPS if step <= steps} | {steps})
    losses = {outcome.contender.name: clean(outcome.losses)[at] for outcome in outcomes}
    rows = []
    for a, of_a in losses.items():
        for b, of_b in losses.items():
            if a == b:
                continue
            mean, low, high, wins = ratio_of(of_a, of_b, index)
            rows += [
                {
                    "a": a,
                    "b": b,
                    "step": step,
                    "ratio": float(mean[i]),
                    "ci95": [float(low[i]), float(high[i])],
                    "win_rate": float(wins[i]),
                }
                for i, step in enumerate(at)
            ]
    return rows


def results(
    config: EvalConfig,
    outcomes: Sequence[Outcome],
    by_name: dict[str, dict[str, Array]],
    index: NDArray[np.int64],
    device: torch.device,
) -> dict[str, Any]:
    """The content of ``results.json``."""
    optimizers = {}
    for outcome in outcomes:
        contender, curve = outcome.contender, by_name[outcome.contender.name]
        optimizers[contender.name] = {
            "kind": contender.kind,
            "gradients_per_step": contender.optimizer.gradients_per_step,
            "loss_mean": curve["mean"].tolist(),
            "loss_geomean": curve["geomean"].tolist(),
            "loss_q05": curve["q05"].tolist(),
            "loss_q95": curve["q95"].tolist(),
            "diverged": diverged(outcome.losses),
            "seconds_per_step": outcome.seconds_per_step,
            "teleport": outcome.teleport,
            "origin": contender.origin,
        }
    return {
        "tasks": config.tasks,
        "steps": config.steps,
        "task_seed": config.task_seed,
        "family": config.task.family,
        "device": str(device),
        "config": config.model_dump(mode="json"),
        "optimizers": optimizers,
        "pairs": pairs(outcomes, config.steps, index),
    }


def execute(
    config: EvalConfig,
    paths: Sequence[Path],
    folder: Path,
    device: torch.device,
    world: World,
    required: bool = True,
) -> str:
    """Evaluate checkpoints and baselines, write all files, and return the report.

    Args:
        config: the configuration of the evaluation.
        paths: the checkpoints.
        folder: where the results are written.
        device: the device that this process computes on.
        world: the processes that share the tasks; the first one writes and returns the report.
        required: whether a damaged checkpoint is an error; otherwise it is left out, and a line
            says so.

    Raises:
        UserError: if there is nothing to evaluate, or a required checkpoint is damaged.
    """
    for name in config.modules:
        module_of(name, "field modules")
    tasks = unseen_tasks(config, device, world)
    world.on_first(lambda: make_folder(folder))
    contenders = told_apart(
        [
            *learned_contenders(paths, device, required, world),
            *baseline_contenders(config, device, TUNED_BASELINES, world),
        ]
    )
    if not contenders:
        raise UserError("nothing to evaluate: train, name --checkpoints, or set baselines")
    tell_horizons(contenders, config.steps, world)
    outcomes = evaluate(config, contenders, tasks, world)
    return world.on_first(lambda: _report(config, outcomes, folder, device))


def _report(
    config: EvalConfig, outcomes: Sequence[Outcome], folder: Path, device: torch.device
) -> str:
    """Write all files, and return the text that is printed."""
    index = resamples(config.tasks, config.bootstrap, config.task_seed)
    by_name = curves(outcomes, index)
    found = results(config, outcomes, by_name, index, device)
    contenders = [outcome.contender for outcome in outcomes]
    task = config.task
    what = task.family if task.is_own else f"width {task.width}"
    title = f"{config.tasks} unseen tasks, {what}: geometric mean and 95 % interval"
    figure = convergence_figure(by_name, contenders, title)
    contents = {
        "results.json": json.dumps(found, indent=1, allow_nan=False).encode(),
        "curves.csv": curves_csv(by_name),
        "convergence.png": figure,
    }
    write_together({folder / name: content for name, content in contents.items()})
    overlay_runs(folder / "tensorboard", by_name, contenders, figure)
    parts = [results_table(found), teleport_table(found), tuning_lines(found), f"results: {folder}"]
    return "\n\n".join(part for part in parts if part)
