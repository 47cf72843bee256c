"""A rule past its horizon: losses and weights on unseen tasks, far beyond what it was trained for.

    python -m studies.horizon FILE [--steps N] [--tasks 32] [--task-seed 0]
                                 [--options '{"width": 32}']

Runs a learned optimizer on unseen tasks of its own family to N inner steps, 10 times its horizon
unless it is said, and prints losses (as tasks are judged) and root mean squares of the weights at
steps between. ``--options``, JSON, changes keyword arguments of a family of your own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaopt.base import cli
from metaopt.base.config import check
from metaopt.base.fields import DTYPES
from metaopt.base.loss_statistics import clean, geomean
from metaopt.base.process import World
from metaopt.base.stopwatch import UNTIMED
from metaopt.base.streams import Stream
from metaopt.base.tables import markdown_table
from metaopt.meta.looks import judging
from metaopt.meta.unroll import start, unroll
from metaopt.optim import learned
from metaopt.rules.composed import MetaOptimizer
from metaopt.tasks.base import Tasks
from metaopt.tasks.build import task_family
from metaopt.tasks.config import TaskConfig

STOPS = (1, 2, 5)


def stops(last: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, 100, 200, 500, .. below ``last``, and ``last``."""
    found = {stop * 10**power for stop in STOPS for power in range(12)}
    return sorted({stop for stop in found if stop < last} | {last})


def far(optimizer: MetaOptimizer, tasks: Tasks, steps: int) -> list[list[str]]:
    """Rows of the table: step, losses (geometric mean, median, largest), the largest weights."""
    rows = []
    with torch.no_grad():
        state = start(tasks, optimizer, judging(UNTIMED))
        for stop in stops(steps):
            state, _ = unroll(tasks, optimizer, state, stop - state.step, judging(UNTIMED))
            losses = clean(state.loss.double().cpu().numpy())
            sizes = [float(W.square().mean().sqrt()) for W in state.weights]
            figures = [float(geomean(losses[None])[0]), float(np.median(losses)), losses.max()]
            rows.append([f"{stop:,}", *(f"{value:.3g}" for value in (*figures, max(sizes)))])
    return rows


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(
            f'found {text!r:.60}, expected JSON such as {{"width": 32}}'
        )
    return found


def main(world: World, given: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = cli.plain_parser("A rule past its horizon.", prog="python -m studies.horizon")
    parser.add_argument("checkpoint", type=Path, metavar="FILE")
    parser.add_argument("--steps", type=cli.positive)
    parser.add_argument("--tasks", type=cli.positive, default=32)
    parser.add_argument("--task-seed", type=int, default=0)
    parser.add_argument("--options", type=_object, default={}, help="of the family, as JSON")
    arguments = parser.parse_args(given)
    rule = learned.load(arguments.checkpoint)
    task = rule.config.task.model_dump(mode="json")
    if arguments.options:
        task["options"] = (task["options"] or {}) | arguments.options
    family = task_family(check(TaskConfig, task, "--options"))
    dtype = DTYPES[rule.config.dtype]
    tasks = family.sample(
        Stream.TEST, arguments.task_seed, 0, arguments.tasks, dtype, torch.device("cpu")
    )
    steps = arguments.steps or 10 * rule.reach.steps
    header = ["inner step", "loss, geometric mean", "median", "largest", "largest rms of weights"]
    world.say(f"{rule.name}: {rule.reach}; {arguments.tasks} unseen tasks")
    world.say(markdown_table(header, far(rule.optimizer, tasks, steps)))


if __name__ == "__main__":
    cli.run(main)
