"""Directions of the default rule, one by one and together: untrained, on validation images.

    python -m studies.directions [--smoke] [--jobs N] [--out DIR] [--json FILE] [--write-page]

The rule of ``configs/general_update.yaml`` as it is before meta-training, with other directions
(``rules.update.directions``), with all of them in equal shares, and without averages of its
iterates, c = 1. Networks and images are neither those that judge the rule elsewhere: digits of the
two thirds that may be trained on, of which a quarter is judged here, and networks of other sizes.

How far the untrained rule goes was chosen for the mixture that it is; directions by themselves may
want more or less. Each variant is therefore shown at ``lr`` 1 and at its best of three for the
column, chosen on the very runs that are shown. (Below 1 averages are slower too.)
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from metaopt.base import cli
from metaopt.base.config import load
from metaopt.base.files import make_folder
from metaopt.base.loss_statistics import Array, clean, geomean
from metaopt.base.process import World
from metaopt.base.shipped import DEFAULT
from metaopt.base.streams import Stream
from metaopt.base.tables import markdown_table
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.optim.learned import LearnedRule
from metaopt.optim.optimizer import LearnedOptimizer
from metaopt.optim.reach import PastHorizonWarning
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.learned.eigen import EigenUpdateLSTM
from metaopt.tasks.base import Hidden, Observation
from metaopt.tasks.images import digits_apart
from metaopt.teleport.optimizer_state import Kept
from studies import pool
from studies.drop_in_training import BATCH, SIDE
from studies.noether.folder import Folder
from studies.output import DOCS, ROOT, Page
from studies.pieces import digest, folder, side_by_side
from studies.rivals.contenders import Contender
from studies.rivals.data import Parts, Rows
from studies.rivals.networks import Residual, RowsReader, perceptron
from studies.rivals.tasks import Task
from studies.rivals.training import alone

PAGE = Page(DOCS / "general.md", "directions table", "directions")
SILENT = "rules.update.scale=1e-6"
"""Nothing of what the network says counts."""
MEANS = "rules.update.mean_decays=[0.5, 0.9]"
"""The sign is that of the slowest mean; the others take the fastest, as in the rule that ships."""
TRAINED = 900
"""Images that are trained on; the others of the two thirds judge."""


class Unaveraged(Rule):
    """A rule whose fast iterates are trained themselves, w' = w + f: c = 1.

    Args:
        rule: one that averages.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    @property
    def reads(self) -> Hidden:
        """As the rule."""
        return self.rule.reads

    def kept(self, name: str) -> Kept:
        """As the rule."""
        return self.rule.kept(name)

    def sides(self, name: str, shape: Any) -> int:
        """As the rule."""
        return self.rule.sides(name, shape)

    def initial_state(self, observation: Observation) -> State:
        """As the rule's."""
        return self.rule.initial_state(observation)

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The updates alone."""
        proposal, state = self.rule.propose(observation, state)
        return Proposal(updates=proposal.updates, decays=proposal.decays), state


@dataclass(frozen=True)
class Variant:
    """Of the untrained rule.

    Attributes:
        directions: of the mixture, by name.
        equal: whether each direction has the same share, and not its own.
        averages: whether iterates are averaged.
    """

    directions: tuple[str, ...]
    equal: bool = False
    averages: bool = True

    def rule(self) -> LearnedRule:
        """The rule, with nothing learned."""
        names = ", ".join(self.directions)
        overrides = [SILENT, MEANS, f"rules.update.directions=[{names}]"]
        config = load(TrainConfig, f"{DEFAULT}.yaml", overrides)
        optimizer = meta_optimizer(config)
        update = optimizer.rules["update"]
        assert isinstance(update, EigenUpdateLSTM)
        if self.equal:
            means = len(update.decays)
            rows = [one.untrained(means) for one in update.directions]
            first = [share for own in rows for share in _first(own)]
            update.untrained = [share / len(update.directions) for share in first]
        if not self.averages:
            optimizer = MetaOptimizer({"update": Unaveraged(update)}, None)
        return LearnedRule(optimizer, config)

    def contender(self, rates: Sequence[float]) -> Contender:
        """For a user's loop."""

        def make(model: nn.Module, rate: float) -> LearnedOptimizer:
            return LearnedOptimizer(model, rule, lr=rate)

        rule = self.rule()
        return Contender("untrained", make, tuple(rates), learned=True)


def _first(shares: Sequence[float]) -> list[float]:
    """All of it in the first row of a direction."""
    return [1.0, *[0.0] * (len(shares) - 1)]


SHIPPED = "Adam and orthogonal"
VARIANTS = {
    SHIPPED: Variant(("adam", "orthogonal")),
    "Adam": Variant(("adam",)),
    "orthogonal": Variant(("orthogonal",)),
    "sign": Variant(("sign",)),
    "all three, a third each": Variant(("adam", "orthogonal", "sign"), equal=True),
    "Adam and orthogonal, no averages": Variant(("adam", "orthogonal"), averages=False),
}
"""By their names in the table; all others are set beside the first."""


def _of_images(make: Callable[[], nn.Module], *shape: int) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, shape), make())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "64-48-10, tanh": partial(perceptron, [SIDE**2, 48, 10], nn.Tanh),
    "64-80-40-20-10, GELU": partial(perceptron, [SIDE**2, 80, 40, 20, 10], nn.GELU),
    "a residual CNN with BatchNorm": partial(
        _of_images, partial(Residual, 1, 8, 10, True), 1, SIDE, SIDE
    ),
    "a transformer with norms first": partial(
        _of_images, partial(RowsReader, SIDE, SIDE, 10), SIDE, SIDE
    ),
}


@dataclass(frozen=True)
class Size:
    """Of the measurement."""

    marks: tuple[int, ...]  # steps at which runs are judged; the last one ends a run
    seeds: int  # runs of each
    rates: tuple[float, ...]  # values of ``lr``, 1 among them


FULL = Size((20, 100, 300, 1000), 3, (0.5, 1.0, 2.0))
SMOKE = Size((2, 4), 2, (1.0, 2.0))


@dataclass(frozen=True)
class Whole:
    """All that the pieces depend on."""

    size: Size
    rules: dict[str, Any]  # of the configuration


@dataclass(frozen=True)
class Piece:
    """One run."""

    network: str
    variant: str
    rate: float
    seed: int


@cache
def images() -> Parts:
    """Digits that may be trained on, cut once more; none of those that judge elsewhere."""
    seen, _ = digits_apart()
    train, apart = (
        Rows(seen.X[rows], seen.y[rows]) for rows in (slice(TRAINED), slice(TRAINED, None))
    )
    return Parts(train, apart, Rows(seen.X[:0], seen.y[:0]))


def run(piece: Piece, size: Size, kept: Folder) -> list[float]:
    """The loss at each mark."""
    # Nothing of it was meta-trained.
    warnings.simplefilter("ignore", PastHorizonWarning)

    def compute() -> dict[str, Any]:
        task = Task(piece.network, "digits", NETWORKS[piece.network], images, batch=BATCH)
        contender = VARIANTS[piece.variant].contender(size.rates)
        of = (piece.rate, size.marks[-1], Stream.VALIDATION, piece.seed, size.marks)
        return {"losses": alone(task, contender, *of)}

    return kept.kept(digest(piece), compute)["losses"]


def pieces(size: Size) -> list[Piece]:
    """Those of the slowest networks first."""
    return [
        Piece(network, variant, rate, seed)
        for network in reversed(NETWORKS)
        for variant in VARIANTS
        for rate in size.rates
        for seed in range(size.seeds)
    ]


def losses(runs: Mapping[Piece, Sequence[float]], variant: str, size: Size) -> Array:
    """[rates, networks, marks, seeds]."""
    return clean(
        np.array(
            [
                [
                    np.array([runs[Piece(n, variant, r, s)] for s in range(size.seeds)]).T
                    for n in NETWORKS
                ]
                for r in size.rates
            ]
        )
    )


def table(runs: Mapping[Piece, Sequence[float]], size: Size) -> str:
    """Losses over those of the mixture that ships: geometric means over networks and seeds."""
    shipped = losses(runs, SHIPPED, size)[size.rates.index(1.0)]
    lines = []
    for variant in VARIANTS:
        # [rates, marks]
        ratio = geomean(
            np.moveaxis(losses(runs, variant, size) / shipped, 2, 1).reshape(
                len(size.rates), len(size.marks), -1
            )
        )
        best = ratio.argmin(0)
        at_1 = ratio[size.rates.index(1.0)]
        lines.append(
            [
                variant,
                *(
                    f"{own:.3g} ({ratio[i, mark]:.3g} at {size.rates[i]:g})"
                    for mark, (own, i) in enumerate(zip(at_1, best, strict=True))
                ),
            ]
        )
    return markdown_table(["untrained", *map(str, size.marks)], lines)


def main(world: World) -> None:
    """Run, print, write the page."""
    parser = argparse.ArgumentParser(description="Directions of the default rule, one by one.")
    parser.add_argument("--smoke", action="store_true", help="few steps, two seeds")
    parser.add_argument("--jobs", type=cli.positive, default=os.cpu_count(), metavar="N")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/directions")
    arguments = PAGE.parse(parser)
    size = SMOKE if arguments.smoke else FULL
    out = arguments.out or ROOT / "runs" / "directions"
    make_folder(out)
    rules = load(TrainConfig, f"{DEFAULT}.yaml").rules.model_dump(mode="json")
    kept = folder(out, "directions", Whole(size, rules))
    with pool.alone(out):
        runs = side_by_side(
            partial(run, size=size, kept=kept), pieces(size), arguments.jobs, "runs"
        )
    text = (
        f"Losses over those of {SHIPPED} at `lr` 1, geometric means over {len(NETWORKS)} networks "
        f"({'; '.join(NETWORKS)}) and {size.seeds} seeds; in brackets at the best `lr` of "
        f"{', '.join(f'{rate:g}' for rate in size.rates)} for the column"
    )
    found = [asdict(piece) | {"losses": own} for piece, own in runs.items()]
    PAGE.tell(arguments, f"{text}\n\n{table(runs, size)}", found)


if __name__ == "__main__":
    cli.run(main)
