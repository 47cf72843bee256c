"""Matrix sensing at condition number 1,000: steps to a thousandth of the first loss.

    python -m studies.sensing [--smoke] [--jobs N] [--out DIR] [--json FILE] [--write-page]

Tasks are those of ``metaopt.tasks.factorised:Sensing`` at a size that no meta-training saw, all of
condition number 1,000, by matrices and by vectors, with mini-batches and with all measurements at
each step. The pair ``factorised_update_tele`` stands beside its updates alone, whose factors stay
in the frame that they began in; beside ``factorised_update``, which was meta-trained without
teleports, and ``general_update``; and beside ScaledGD and Adam, whose rates are for each
column the best of their grids on these very tasks. What the folder (``runs/sensing`` by default)
already has is not run again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaopt.base import cli
from metaopt.base.files import make_folder
from metaopt.base.loss_statistics import Array, clean, geomean, ratio_of, resamples
from metaopt.base.process import World
from metaopt.base.shipped import DEFAULT
from metaopt.base.streams import Stream
from metaopt.base.tables import markdown_table
from metaopt.meta.unroll import rollout
from metaopt.optim.learned import load
from metaopt.optim.memory import identity
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.hand_made import Adam, GradientDescent
from metaopt.tasks.base import Observation, Tasks
from metaopt.tasks.factorised import Sensing
from metaopt.tasks.own_batch import LossFamily
from studies import pool
from studies.lora.contenders import doubled, off
from studies.lora.hand_made import scaled
from studies.output import DOCS, ROOT, Page
from studies.pieces import digest, folder, side_by_side

PAGE = Page(DOCS / "sensing.md", "sensing table", "sensing")
PAIR, UPDATE = "factorised_update_tele", "factorised_update"
LEARNED = (PAIR, off(PAIR), UPDATE, DEFAULT)
SCALED_GD, ADAM = "ScaledGD", "Adam"
FAMILY = "metaopt.tasks.factorised:Sensing"
CONDITION = 1000.0
SETTINGS: dict[str, dict[str, Any]] = {
    "matrices": {},
    "vectors": {"measured": "vectors"},
    "matrices, full batch": {"batch": None},
    "vectors, full batch": {"measured": "vectors", "batch": None},
}
SEED = 30
TARGETS = (1e-2, 1e-3, 1e-6)
"""Shares of the first loss; the bar is the second."""
BAR = 1
DAMPING = 1e-9
"""Of ScaledGD: Gram matrices of float32 stay invertible."""
BETAS = (0.9, 0.999)
"""Of Adam, torch's own."""
RESAMPLES = 10_000


class ScaledGradientDescent(GradientDescent):
    """f_A = -lr (B^T B)^-1 G_A,   f_B = -lr G_B (A A^T)^-1.

    Args:
        lr: the step size.

    References:
        Tong, Ma and Chi, Accelerating ill-conditioned low-rank matrix estimation via scaled
        gradient descent (2021).
    """

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The steps of the class's equation."""
        (A, B), (G_A, G_B) = observation.weights, observation.grads
        directions = scaled(A, B, G_A, G_B, DAMPING)
        return super().propose(replace(observation, grads=directions), state)


HAND_MADE: dict[str, Callable[[float], Rule]] = {
    SCALED_GD: ScaledGradientDescent,
    ADAM: lambda lr: Adam(lr, *BETAS),
}


@dataclass(frozen=True)
class Size:
    """Of the study."""

    size: int  # of the matrices
    rank: int
    tasks: int
    steps: Mapping[str, int]  # by row; of learned rules under their own names
    rates: Mapping[str, tuple[float, ...]]


FULL = Size(
    24,
    3,
    16,
    {ADAM: 1500, SCALED_GD: 600} | dict.fromkeys(LEARNED, 600),
    {SCALED_GD: tuple(doubled(0.05, 7, 1.4)), ADAM: tuple(doubled(0.005, 8, 1.7))},
)
SMOKE = Size(
    6,
    2,
    2,
    {ADAM: 3, SCALED_GD: 2} | dict.fromkeys(LEARNED, 2),
    {SCALED_GD: (0.1,), ADAM: (0.01, 0.03)},
)


@dataclass(frozen=True)
class Piece:
    """A row in a setting."""

    setting: str
    row: str
    rate: float = 1.0  # of hand-made ones
    mark: str = ""  # the digest of a learned rule


@dataclass(frozen=True)
class Whole:
    """All that the pieces depend on."""

    size: Size
    settings: dict[str, dict[str, Any]]
    condition: float
    seed: int
    damping: float
    betas: tuple[float, float]


def optimizer_of(piece: Piece) -> MetaOptimizer:
    """What takes the steps of a piece."""
    if piece.row in HAND_MADE:
        return MetaOptimizer({"update": HAND_MADE[piece.row](piece.rate)}, None)
    whole = load(piece.row.removesuffix(off(""))).optimizer
    return (
        whole if piece.row != off(PAIR) else MetaOptimizer({"update": whole.rules["update"]}, None)
    )


def tasks_of(setting: str, size: Size) -> Tasks:
    """The test tasks of a setting, batched."""
    options = {"condition": CONDITION, "from_condition": CONDITION, **SETTINGS[setting]}
    sensing = Sensing(size.size, size.rank, **options)
    return LossFamily(sensing, FAMILY).sample(Stream.TEST, SEED, 0, size.tasks, torch.float32)


def reached(losses: Array, share: float) -> Array:
    """The first step after which a loss is at most a share of the first; one more than all if none.

    Args:
        losses: [steps + 1, tasks].
        share: of the loss before the first step.
    """
    hit = losses <= share * losses[0]
    return np.where(hit.any(axis=0), hit.argmax(axis=0), len(losses)).astype(np.float64)


def run(piece: Piece, size: Size, kept: Any) -> list[list[float]]:
    """Steps to each of the targets, [targets, tasks]."""

    def compute() -> dict[str, Any]:
        torch.set_num_threads(1)
        tasks = tasks_of(piece.setting, size)
        losses = rollout(tasks, optimizer_of(piece), size.steps[piece.row])[0]
        found = clean(losses.double().numpy())
        return {"steps": [reached(found, share).tolist() for share in TARGETS]}

    return kept.kept(digest(piece), compute)["steps"]


def pieces(size: Size) -> list[Piece]:
    """The longest first."""
    found = [
        Piece(setting, row, rate)
        for row in (ADAM, SCALED_GD)
        for rate in size.rates[row]
        for setting in SETTINGS
    ]
    for row in LEARNED:
        rule = load(row.removesuffix(off("")))
        mark = str(identity(rule, rule.optimizer))
        found += [Piece(setting, row, mark=mark) for setting in SETTINGS]
    return found


@dataclass(frozen=True)
class Row:
    """What a row needs in a setting."""

    steps: Array  # [targets, tasks]
    told: list[str]  # its rate for each target


def best(found: dict[Piece, list[list[float]]], setting: str, row: str) -> Row:
    """A row with the rate of its grid that needs least steps, target by target."""
    of_row = {
        piece.rate: np.array(steps)
        for piece, steps in found.items()
        if (piece.setting, piece.row) == (setting, row)
    }
    rates = sorted(of_row)
    means = np.stack([geomean(of_row[rate]) for rate in rates])
    steps, told = [], []
    for target, least in enumerate(means.argmin(axis=0)):
        edge = " *" if least in (0, len(rates) - 1) else ""
        steps.append(of_row[rates[least]][target])
        told.append("" if row in LEARNED else f" ({rates[least]:g}{edge})")
    return Row(np.stack(steps), told)


def text(rows: dict[str, dict[str, Row]], size: Size) -> str:
    """A table of steps for each setting, and one of ratios to the bar's target."""
    index = resamples(size.tasks, RESAMPLES, seed=0)
    parts = [
        f"Steps until the loss on measurements of their own is at most a share of the first, "
        f"geometric mean over {size.tasks} tasks of size {size.size} and rank {size.rank}; in "
        "brackets the rate (* at an edge of its grid); + where some tasks did not reach it, which "
        "count as one step more than all."
    ]
    ratios = []
    for setting, of_setting in rows.items():
        shown = []
        for name, row in of_setting.items():
            lost = [bool((steps > size.steps[name]).any()) for steps in row.steps]
            cells = [
                f"{steps:.3g}{' +' if some else ''}{told}"
                for steps, some, told in zip(geomean(row.steps), lost, row.told, strict=True)
            ]
            shown.append([name, *cells])
            if name != PAIR:
                pair = of_setting[PAIR].steps[BAR]
                mean, low, high, _ = map(float, ratio_of(pair, row.steps[BAR], index))
                ratios.append((name, setting, f"{mean:.3g} ({low:.3g} to {high:.3g})"))
        columns = [setting, *(f"{share:g}" for share in TARGETS)]
        parts.append(markdown_table(columns, shown))
    parts.append(
        f"Steps of {PAIR} to {TARGETS[BAR]:g} over those of others, with paired 95 % intervals "
        "over tasks:"
    )
    names = list(dict.fromkeys(name for name, _, _ in ratios))
    by_place = {(name, setting): cell for name, setting, cell in ratios}
    body = [[name, *(by_place[name, setting] for setting in rows)] for name in names]
    parts.append(markdown_table([f"{PAIR} to", *rows], body))
    return "\n\n".join(parts)


def main(world: World) -> None:
    """Run, print, write the page."""
    parser = argparse.ArgumentParser(description="Sensing: the pair, ScaledGD and Adam.")
    parser.add_argument("--smoke", action="store_true", help="few steps, two tasks")
    parser.add_argument("--jobs", type=cli.positive, default=os.cpu_count(), metavar="N")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/sensing")
    arguments = PAGE.parse(parser)
    size = SMOKE if arguments.smoke else FULL
    out = arguments.out or ROOT / "runs" / "sensing"
    make_folder(out)
    kept = folder(out, "sensing", Whole(size, SETTINGS, CONDITION, SEED, DAMPING, BETAS))
    with pool.alone(out):
        found = side_by_side(
            partial(run, size=size, kept=kept), pieces(size), arguments.jobs, "runs"
        )
    names = (*LEARNED, SCALED_GD, ADAM)
    rows = {setting: {name: best(found, setting, name) for name in names} for setting in SETTINGS}
    figures = {
        setting: {
            name: {"steps": row.steps.tolist(), "rates": row.told} for name, row in own.items()
        }
        for setting, own in rows.items()
    }
    PAGE.tell(arguments, text(rows, size), {"targets": TARGETS, "settings": figures})


if __name__ == "__main__":
    cli.run(main)
