"""Evaluation: all optimizers on the same unseen tasks, each in one batched run of the one unroll.

Losses are those of the current weights, index 0 before the first step. Optimizers are compared by
pairs on the same tasks: the ratio is the geometric mean of a's loss over b's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from metaopt import build, learned
from metaopt.checkpoint import CheckpointError, make_folder, write_atomically
from metaopt.errors import UserError
from metaopt.learned import LearnedRule
from metaopt.optimizers import Optimizer
from metaopt.report import (
    convergence_figure,
    curves_csv,
    overlay_runs,
    results_table,
    teleport_table,
    tuning_lines,
)
from metaopt.rules.base import ShapeMismatchError
from metaopt.schema import EvalConfig
from metaopt.statistics import CEILING, clean, diverged, geomean, geomean_interval, resamples
from metaopt.streams import Stream
from metaopt.symmetry import InexactActionError
from metaopt.tasks import TaskBatch
from metaopt.tuning import edges, tune
from metaopt.unroll import TeleportTrace, rollout

Array = NDArray[np.float64]
Kind = Literal["learned", "baseline", "reference"]

PAIR_STEPS = (1, 10, 20, 50, 100)
TUNED_BASELINES = Path("runs/tuned_baselines.json")
"""Cache of tuned hyper-parameters, whatever folder the results go to."""


@dataclass(frozen=True)
class Contender:
    """An optimizer to be evaluated.

    Attributes:
        name: as it stands in all results.
        kind: where it comes from.
        optimizer: what steps.
        origin: what is worth telling of it: a path, or chosen hyper-parameters.
    """

    name: str
    kind: Kind
    optimizer: Optimizer
    origin: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What one contender did.

    Attributes:
        contender: who.
        losses: float64 [steps + 1, tasks], as computed.
        seconds_per_step: wall clock of an inner step of the whole batch.
        teleport: summary, or None without teleports.
    """

    contender: Contender
    losses: Array
    seconds_per_step: float
    teleport: dict[str, float] | None


def learned_contenders(
    paths: Sequence[Path], device: torch.device, required: bool
) -> list[Contender]:
    """Checkpoints as contenders; two of one name get `` #seed``.

    Args:
        paths: of checkpoints.
        device: where to compute.
        required: a damaged file is an error; otherwise it is left out with a line.
    """
    rules = []
    for path in paths:
        try:
            rules.append((path, learned.load(path, device)))
        except CheckpointError as error:
            if required:
                raise
            tqdm.write(f"left out: {error}")
    names = [rule.name for _, rule in rules]
    full = [
        rule.name if names.count(rule.name) == 1 else f"{rule.name} #{rule.config.seed}"
        for _, rule in rules
    ]
    return [
        Contender(name, "learned", rule.optimizer, _origin(path, rule))
        for name, (path, rule) in zip(full, rules, strict=True)
    ]


def numbered(contenders: Sequence[Contender]) -> list[Contender]:
    """The contenders, those of a name that came before as ``NAME (2)``, ``NAME (3)`` ..."""
    names = [contender.name for contender in contenders]
    return [
        replace(contender, name=f"{contender.name} ({earlier + 1})") if earlier else contender
        for i, contender in enumerate(contenders)
        for earlier in (names[:i].count(contender.name),)
    ]


def _origin(path: Path, rule: LearnedRule) -> dict[str, Any]:
    return {"checkpoint": str(path), "seed": rule.config.seed, "training": rule.training}


def baseline_contenders(config: EvalConfig, device: torch.device, cache: Path) -> list[Contender]:
    """The hand-made optimizers of a configuration, tuned on validation tasks."""
    return [
        Contender(
            choice.name,
            "baseline",
            build.hand_made(choice.base, choice.values),
            {
                "hyperparameters": choice.values,
                "tuned_for_step": choice.step,
                "validation_loss": choice.validation_loss,
                "at_the_edge_of_the_grid": edges(choice, config),
            },
        )
        for choice in tune(config, device, cache)
    ]


def run_contender(contender: Contender, tasks: TaskBatch, steps: int) -> Outcome:
    """One batched run, timed after a short warm-up.

    Raises:
        ShapeMismatchError, InexactActionError: where it does not fit the tasks.
    """
    # The warm-up also makes what belongs to the tasks and not to a step, such as X^+.
    rollout(tasks, contender.optimizer, min(steps, 2))
    _wait(tasks.X.device)
    began = time.perf_counter()
    losses, teleports = rollout(tasks, contender.optimizer, steps)
    _wait(tasks.X.device)
    seconds = time.perf_counter() - began
    return Outcome(
        contender,
        losses.double().cpu().numpy(),
        seconds / steps,
        None if teleports is None else summarise(teleports),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarise(teleports: TeleportTrace) -> dict[str, float]:
    """Teleports of a run in four numbers."""
    numbers = {name: float(value) for name, value in teleports.summary().items()}
    # As for losses: what is not finite counts as very large, so that the file stays valid JSON.
    return {
        name: float(np.nan_to_num(number, nan=CEILING, posinf=CEILING, neginf=-CEILING))
        for name, number in numbers.items()
    }


def evaluate(
    config: EvalConfig, contenders: Sequence[Contender], device: torch.device
) -> list[Outcome]:
    """All contenders on the same test tasks; those that do not fit are left out with a line."""
    tasks = build.task_family(config.task).sample(
        Stream.TEST, config.task_seed, 0, config.tasks, build.DTYPES[config.dtype], device
    )
    outcomes = []
    bar = tqdm(contenders, desc="evaluating")
    for contender in bar:
        bar.set_postfix_str(contender.name)
        fitted = contender.optimizer
        if isinstance(fitted, torch.nn.Module):
            fitted.to(build.DTYPES[config.dtype])
        try:
            outcomes.append(run_contender(contender, tasks, config.steps))
        except (ShapeMismatchError, InexactActionError) as error:
            tqdm.write(f"left out: {contender.name}: {error}")
    if not outcomes:
        raise UserError("nothing is left to evaluate: no optimizer fits these tasks")
    return outcomes


def curves(outcomes: Sequence[Outcome], index: NDArray[np.int64]) -> dict[str, dict[str, Array]]:
    """By optimizer: mean, geomean, its interval (low, high), q05, q95 and seconds by inner step."""
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
    """Every ordered pair at a few steps: ratio of losses, its interval, share of tasks won."""
    at = sorted({step for step in PAIR_STEPS if step <= steps} | {steps})
    losses = {outcome.contender.name: clean(outcome.losses)[at] for outcome in outcomes}
    rows = []
    for a, of_a in losses.items():
        for b, of_b in losses.items():
            if a == b:
                continue
            ratio = of_a / of_b
            low, high = geomean_interval(ratio, index)
            mean = np.exp(np.log(ratio).mean(axis=1))
            wins = (of_a < of_b).mean(axis=1)
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
    required: bool = True,
) -> str:
    """Evaluate checkpoints and baselines, write all files, return the report.

    Args:
        config: what to evaluate on.
        paths: of checkpoints.
        required: whether a damaged checkpoint is an error, or left out with a line.
        folder: where results go.
        device: where to compute.
    """
    make_folder(folder)
    contenders = numbered(
        [
            *learned_contenders(paths, device, required),
            *baseline_contenders(config, device, TUNED_BASELINES),
        ]
    )
    if not contenders:
        raise UserError("nothing to evaluate: train, name --checkpoints, or set baselines")
    outcomes = evaluate(config, contenders, device)
    index = resamples(config.tasks, config.bootstrap, config.task_seed)
    by_name = curves(outcomes, index)
    found = results(config, outcomes, by_name, index, device)
    write_atomically(folder / "results.json", json.dumps(found, indent=1, allow_nan=False).encode())
    write_atomically(folder / "curves.csv", curves_csv(by_name))
    learned_names = [o.contender.name for o in outcomes if o.contender.kind == "learned"]
    title = (
        f"{config.tasks} unseen tasks, width {config.task.width}: geometric mean and 95 % interval"
    )
    figure = convergence_figure(by_name, learned_names, title)
    write_atomically(folder / "convergence.png", figure)
    overlay_runs(folder / "tensorboard", by_name)
    parts = [results_table(found), teleport_table(found), tuning_lines(found), f"results: {folder}"]
    return "\n\n".join(part for part in parts if part)
