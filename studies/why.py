"""Why it works: geometry and alignment along evaluation trajectories, with teleports and without.

    python -m studies.why [--checkpoints PAIR UPDATE ...] [--tasks 64] [--steps 100]
                          [--task-seed 0] [--device cpu|cuda|cuda:N] [--json FILE] [--write-page]

Learned optimizers, those with teleports beside those without, run on the same test tasks, those of
the first checkpoint's configuration. At every inner step: loss, norm of the generator, drift. At
steps 0, 1, 2, 5, 10, 20, 30, 50, 70, 100: the condition number of the hidden activations
H = s(W1 X), the norm of the gradient right before and right after the teleport, and what
``studies.alignment`` compares with the damped Newton directions of ``metaopt.landscape.curvature``
(Gauss-Newton and the absolute Hessian in all of (W1, W2), and Newton's in W2 alone, each damped by
1e-3 and by 1e-6 of its largest eigenvalue).
Trajectories run in the precision of the checkpoint; all else is computed in float64 from their
weights.

The paper (arXiv 2305.13404) predicts that teleporting turns a gradient step toward Newton's: look
at "gradient before", "gradient after" and the gain of the one over the other, which is what one
teleport did, and at "gradient undone" and the total gain, which are what all of them did.

``--write-page`` puts the tables into ``docs/results/why.md``, ``why.png`` and ``why.json`` beside
it. In JSON a figure that no task has is null; ``tasks`` counts the tasks that have one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt.base import cli
from metaopt.base.errors import MisfitError, UserError
from metaopt.base.fields import DTYPES
from metaopt.base.loss_statistics import clean
from metaopt.base.process import World
from metaopt.base.streams import Stream
from metaopt.base.tables import markdown_table
from metaopt.evaluation.contenders import Contender, learned_contenders, told_apart
from metaopt.meta.unroll import rollout
from metaopt.optim import learned
from metaopt.rules.composed import MetaOptimizer
from metaopt.tasks.build import task_family
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.base import TeleportTrace
from studies.alignment import Measured, measure, stops
from studies.output import DOCS, PRETRAINED, Page, add_device, in_repository
from studies.why_figure import figure

PAGE = Page(DOCS / "why.md", "why table", "why")
CHECKPOINTS = tuple(
    PRETRAINED / f"{name}.safetensors" for name in ("coordinate_update_tele", "coordinate_update")
)
STOPS = (0, 1, 2, 5, 10, 20, 30, 50, 70, 100)
TABLE_STEPS = (1, 10, 50)
"""Inner steps of the table of alignments, with the last one."""

Stats = dict[str, float | int | None]


def stop_steps(last: int) -> list[int]:
    """The inner steps at which ``last`` steps are looked at."""
    return sorted({step for step in STOPS if step < last} | {last})


def positive(values: NDArray[np.float64]) -> Stats:
    """Geometric mean, median and quantiles over the tasks that have a finite value above 0."""
    kept = values[np.isfinite(values) & (values > 0)]
    mean = None if not kept.size else float(np.exp(np.log(kept).mean()))
    return {"geomean": mean} | _quantiles(kept)


def signed(values: NDArray[np.float64]) -> Stats:
    """Mean, median, quantiles and the share above 0, over the tasks that have a finite value."""
    kept = values[np.isfinite(values)]
    if not kept.size:
        return {"mean": None, "share_above_0": None} | _quantiles(kept)
    return {
        "mean": float(kept.mean()),
        "share_above_0": float((kept > 0).mean()),
    } | _quantiles(kept)


def _quantiles(kept: NDArray[np.float64]) -> Stats:
    names = ("q05", "median", "q95")
    if not kept.size:
        return {**dict.fromkeys(names), "tasks": 0}
    found = np.quantile(kept, (0.05, 0.5, 0.95))
    return {
        **{name: float(value) for name, value in zip(names, found, strict=True)},
        "tasks": int(kept.size),
    }


def studied(contender: Contender, tasks: TaskBatch, steps: int) -> dict[str, Any]:
    """All figures of one optimizer.

    Args:
        contender: a learned optimizer.
        tasks: two-layer tasks.
        steps: inner steps.
    """
    assert isinstance(contender.optimizer, MetaOptimizer)
    losses, trace = rollout(tasks, contender.optimizer, steps)
    measured = [
        (stop.step, measure(tasks, stop))
        for stop in stops(tasks, contender.optimizer, stop_steps(steps))
    ]
    return {
        "origin": in_repository(contender.origin),
        "loss": [positive(row) for row in clean(losses.double().cpu().numpy())],
        "teleports": None if trace is None else _teleports(trace),
        "stops": [_stop(step, found) for step, found in measured],
    }


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()


def _teleports(trace: TeleportTrace) -> dict[str, Any]:
    """By inner step 1 .. steps: norms and drifts; over all of them: refusals, largest drift."""
    summary = {name: float(value) for name, value in trace.summary().items()}
    finite = {name: value if np.isfinite(value) else None for name, value in summary.items()}
    return {
        "norm": [positive(row) for row in _array(trace.norm)],
        "drift": [positive(row) for row in _array(trace.drift)],
        "drift_max": [float(np.nanmax(row, initial=0.0)) for row in _array(trace.drift)],
        "summary": finite,
    }


def _stop(step: int, found: Measured) -> dict[str, Any]:
    """One stop as plain data."""
    return {
        "step": step,
        "state": {name: positive(_array(values)) for name, values in found.state.items()},
        "alignment": [
            {"curvature": curvature, "damping": damping, "of": of, **signed(_array(values))}
            for (curvature, damping, of), values in found.alignment.items()
        ],
    }


def state_table(found: Mapping[str, Any]) -> str:
    """Geometric means at every stop."""
    rows = []
    for name, entry in found["optimizers"].items():
        teleports = entry["teleports"]
        for stop in entry["stops"]:
            step, state = stop["step"], stop["state"]
            moved = teleports is not None and step > 0
            columns = [
                _number(state.get(column), "geomean")
                for column in (
                    "condition undone",
                    "condition after",
                    "gradient norm undone",
                    "gradient norm before",
                    "gradient norm after",
                    "gradient norm ratio",
                )
            ]
            norm = _number(teleports["norm"][step - 1], "geomean") if moved else ""
            drift = f"{teleports['drift_max'][step - 1]:.2g}" if moved else ""
            loss = _number(entry["loss"][step], "geomean")
            rows.append([name, str(step), loss, *columns, norm, drift])
    condition = ["cond(H) undone", "cond(H)"]
    gradient = [f"gradient {when}" for when in ("undone", "before", "after", "after / before")]
    header = ["optimizer", "step", "loss", *condition, *gradient]
    return markdown_table([*header, "generator norm", "largest drift"], rows)


COMPARED = (
    "gradient undone",
    "gradient before",
    "gradient after",
    "gradient gain",
    "gradient total gain",
    "update",
    "update carried",
    "update undone",
    "gradient undone, in outputs",
    "gradient after, in outputs",
    "update, in outputs",
)


def alignment_table(found: Mapping[str, Any]) -> str:
    """Median cosines at a few stops; of the gain the mean, and the share of tasks above 0."""
    rows = []
    shown = {step for step in TABLE_STEPS if step < found["steps"]} | {found["steps"]}
    for name, entry in found["optimizers"].items():
        for stop in entry["stops"]:
            if stop["step"] not in shown:
                continue
            by_kind: dict[tuple[str, float], dict[str, Any]] = {}
            for line in stop["alignment"]:
                by_kind.setdefault((line["curvature"], line["damping"]), {})[line["of"]] = line
            for (curvature, damping), lines in by_kind.items():
                cells = [_cosine(lines.get(of), of) for of in COMPARED]
                rows.append([name, str(stop["step"]), curvature, f"{damping:g}", *cells])
    return markdown_table(["optimizer", "step", "Newton", "damping", *COMPARED], rows)


def _number(stats: Stats | None, key: str) -> str:
    value = None if stats is None else stats[key]
    return "" if value is None else f"{value:.3g}"


def _cosine(stats: Stats | None, of: str) -> str:
    if stats is None or stats["mean"] is None:
        return ""
    if of.endswith("gain"):
        return f"{stats['mean']:+.1e} ({100 * (stats['share_above_0'] or 0):.0f} %)"
    return f"{stats['median']:.3f}"


def table(found: Mapping[str, Any]) -> str:
    """Both tables, with what they hold."""
    return (
        f"{found['tasks']} test tasks (task seed {found['task_seed']}). Geometric means; norms of "
        "the gradient; undone: with all teleports undone; the largest drift is over tasks.\n\n"
        f"{state_table(found)}\n\n"
        "Cosines with the damped Newton direction, medians over tasks; of the gains the mean, and "
        f"the share of tasks on which they are above 0.\n\n{alignment_table(found)}"
    )


def study(
    contenders: Sequence[Contender], tasks: TaskBatch, steps: int, task_seed: int
) -> dict[str, Any]:
    """All optimizers on the same tasks: the content of ``why.json``.

    Raises:
        UserError: where the tasks have more than two layers, or an optimizer does not fit them.
    """
    if len(tasks.initial) != 2:
        raise UserError(
            f"studies.why looks at tasks of two layers, found {len(tasks.initial)}; "
            f"take checkpoints trained on task.layers 2"
        )
    entries = {}
    for contender in contenders:
        try:
            entries[contender.name] = studied(contender, tasks, steps)
        except MisfitError as error:
            raise UserError(f"{contender.name}: {error}") from None
        print(f"measured: {contender.name}", flush=True)
    return {
        "tasks": tasks.size,
        "task_seed": task_seed,
        "steps": steps,
        "optimizers": entries,
    }


def main(world: World) -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description="Geometry and alignment along trajectories.")
    parser.add_argument("--checkpoints", nargs="+", type=Path, default=list(CHECKPOINTS))
    parser.add_argument("--tasks", type=cli.positive, default=64)
    parser.add_argument("--steps", type=cli.positive, default=100)
    parser.add_argument("--task-seed", type=int, default=0)
    add_device(parser)
    arguments = PAGE.parse(parser)
    device = cli.device(arguments.device, world)
    first = learned.load(arguments.checkpoints[0]).config
    contenders = told_apart(learned_contenders(arguments.checkpoints, device, True, world))
    for contender, path in zip(contenders, arguments.checkpoints, strict=True):
        if contender.optimizer.gradients_per_step != 1:
            raise UserError(
                f"{path}: field teleporter.order: found around, whose gradient is taken elsewhere; "
                f"expected after"
            )
    tasks = task_family(first.task).sample(
        Stream.TEST,
        arguments.task_seed,
        0,
        arguments.tasks,
        DTYPES[first.dtype],
        torch.device(device),
    )
    found = study(contenders, tasks, arguments.steps, arguments.task_seed)
    PAGE.tell(arguments, table(found), found, figure(found))


if __name__ == "__main__":
    cli.run(main)
