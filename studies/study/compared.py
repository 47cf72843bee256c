"""Contenders of one family side by side: curves with intervals, over seeds, and in pairs.

Over seeds means: for each task the geometric mean of the losses that the seeds reach, then the
statistics over tasks. Intervals are bootstrapped over tasks; the spread over seeds is shown by all
of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaopt.base.loss_statistics import diverged, geomean, geomean_interval
from metaopt.evaluation.evaluate import PAIR_STEPS

Array = NDArray[np.float64]
Index = NDArray[np.int64]
FIRST_ORDER = ("GD", "Momentum", "Adam", "L-BFGS")
"""The hand-made methods that the claims are against."""


@dataclass(frozen=True)
class RunOf:
    """One run of a contender on the test tasks.

    Attributes:
        seed: of meta-training; None for hand-made optimizers.
        losses: cleaned, or the excess over the least loss, [steps + 1, tasks].
        raw: losses as computed.
        about: of the evaluation.
    """

    seed: int | None
    losses: Array
    raw: Array
    about: dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """A contender with all its seeds.

    Attributes:
        name: of the row, or of the hand-made optimizer.
        label: in tables.
        kind: learned, control, ablation, baseline or reference.
        runs: one a seed.
    """

    name: str
    label: str
    kind: str
    runs: Sequence[RunOf]

    def over_seeds(self) -> Array:
        """Geometric mean over seeds, task by task, [steps + 1, tasks]."""
        return geomean(np.stack([run.losses for run in self.runs], axis=-1))

    def extreme(self, step: int, worst: bool) -> Array:
        """Losses [steps + 1, tasks] of the seed that is worst, or best, at a step."""
        order = sorted(self.runs, key=lambda run: float(geomean(run.losses[step])))
        return order[-1 if worst else 0].losses

    @property
    def hand_made(self) -> bool:
        """Whether a bar may be held against it."""
        return self.kind == "baseline" and self.name.partition("@")[0] in FIRST_ORDER


def shown_steps(steps: int) -> list[int]:
    """The inner steps at which everything is given."""
    return sorted({step for step in PAIR_STEPS if step <= steps} | {steps})


def curve(losses: Array, index: Index) -> dict[str, Any]:
    """Geometric mean and 95 % interval, at all steps and at those that are shown."""
    mean = geomean(losses)
    low, high = geomean_interval(losses, index)
    at = {
        str(step): {"geomean": float(mean[step]), "ci95": [float(low[step]), float(high[step])]}
        for step in shown_steps(len(losses) - 1)
    }
    return {"at": at, "geomean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}


def ratio(a: Array, b: Array, index: Index) -> dict[str, Any]:
    """Geometric mean of a / b over tasks, its interval and the share of tasks where a < b.

    Args:
        a: losses at one step, [tasks].
        b: losses on the same tasks, [tasks].
        index: of the bootstrap.
    """
    quotient = a / b
    low, high = geomean_interval(quotient, index)
    return {
        # Not by ``geomean``, which floors what is a loss and not a quotient.
        "ratio": float(np.exp(np.log(quotient).mean())),
        "ci95": [float(low), float(high)],
        "win_rate": float((a < b).mean()),
    }


def ratios(a: Compared, b: Compared, index: Index) -> list[dict[str, Any]]:
    """a over b: seed by seed, over seeds, and a's worst seed over b's best.

    Seed s of a is divided by seed s of b, where b has that seed, and otherwise by b's only run.
    """
    rows = []
    for step in shown_steps(len(a.runs[0].losses) - 1):
        sides: dict[str, tuple[Array, Array]] = {}
        for run in a.runs:
            rival = next((other for other in b.runs if other.seed == run.seed), None)
            if rival is None and len(b.runs) == 1:
                rival = b.runs[0]
            if rival is not None:
                sides[str(run.seed)] = (run.losses, rival.losses)
        sides["all"] = (a.over_seeds(), b.over_seeds())
        sides["worst/best"] = (a.extreme(step, worst=True), b.extreme(step, worst=False))
        rows += [
            {"a": a.name, "b": b.name, "step": step, "seed": seed}
            | ratio(of_a[step], of_b[step], index)
            for seed, (of_a, of_b) in sides.items()
        ]
    return rows


def best_hand_made(contenders: Sequence[Compared], step: int) -> Compared | None:
    """The hand-made optimizer with the least loss at a step, whatever step it was tuned for."""
    known = [contender for contender in contenders if contender.hand_made]
    return min(known, key=lambda c: float(geomean(c.runs[0].losses[step])), default=None)


def as_dict(contender: Compared, index: Index) -> dict[str, Any]:
    """For the JSON."""
    runs = [
        {
            "seed": run.seed,
            "diverged": diverged(run.raw),
            "seconds_per_step": run.about["seconds_per_step"],
            "gradients_per_step": run.about["gradients_per_step"],
            "teleport": run.about["teleport"],
            "origin": run.about["origin"],
            **curve(run.losses, index),
        }
        for run in contender.runs
    ]
    return {
        "label": contender.label,
        "kind": contender.kind,
        "runs": runs,
        "over_seeds": curve(contender.over_seeds(), index),
    }
