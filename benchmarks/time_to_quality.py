"""Wall-clock time of meta-training until the learned optimizer is as good as the published one.

    python -m benchmarks.time_to_quality [--config NAME ...] [--set key.sub=value ...]
                                         [--limit SECONDS] [--device cpu|cuda|cuda:N] [--json FILE]

The marks are the losses after 20 inner steps and at the end that the code published with
arXiv 2305.13404 reaches once it is trained (run as it is; its last index, 99, is held against step
100), and half of them. Each configuration is meta-trained from scratch until the geometric mean
over its validation tasks has passed all marks, its outer steps are used up, or ``--limit`` seconds
(120 by default) are over.

Time counts from before the trainer is made, validation apart. Validation comes as often as it can
while it takes at most a fifth of the time. Each mark's time is that of the first validation to pass
it, an upper bound; the validation before, which did not pass, is given beside it.

Without ``--config``: the paper's recipe (``configs/paper/``, one trajectory at a time) and the
defaults. ``--set`` overrides fields of all of them, e.g. ``meta.batch`` or
``rules.update.outer_lr`` (the cosine schedule ends at ``meta.outer_steps``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from metaopt.base import cli
from metaopt.base.config import load
from metaopt.base.errors import UserError
from metaopt.base.loss_statistics import geomean
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from studies.output import add_device, add_json, write_json

KINDS = ("lstm_update", "lstm_update_tele", "lstm_lr_tele")
CONFIGS = (
    *(f"paper/{kind}.yaml" for kind in KINDS),
    *(f"{kind}.yaml" for kind in KINDS),
    *(f"{kind.replace('lstm', 'coordinate')}.yaml" for kind in KINDS),
)
PUBLISHED: Mapping[str, Mapping[int, float]] = {
    "LSTM(update)": {20: 19.1, 100: 22.1},
    "LSTM(update,tele)": {20: 44.0, 100: 1930.0},
    "LSTM(lr,tele)": {20: 25.7, 100: 12.9},
}
"""Losses by inner step of the published code, trained as published, over its 5 test runs."""
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Mark:
    """A validation loss to get below."""

    step: int  # inner step
    loss: float  # to be passed there


@dataclass(frozen=True)
class Passed:
    """When a mark was passed."""

    seconds: float  # of meta-training at the first validation below the mark
    not_before: float  # of meta-training at the validation before that, which was above it
    trajectories: float  # meta-trained on by then


@dataclass(frozen=True)
class Attempt:
    """One meta-training run."""

    config: str  # its file
    batch: int  # its meta-batch
    passed: Mapping[Mark, Passed | None]  # by mark, None where it was not passed
    seconds: float  # of meta-training, validation apart
    validation_seconds: float  # beside them
    outer_steps: int  # taken
    finished: bool  # whether all outer steps of the configuration were taken
    best: Mapping[int, float]  # lowest validation loss seen at the step of each mark

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        marks = [
            asdict(mark) | ({"passed": None if passed is None else asdict(passed)})
            for mark, passed in self.passed.items()
        ]
        return vars(self) | {"passed": marks, "best": dict(self.best)}


def marks(config: TrainConfig) -> list[Mark]:
    """The published figures and half of them; raises ``UserError`` where there are none."""
    label = config.label.removeprefix("coordinate ")
    if label not in PUBLISHED:
        raise UserError(
            f"{config.name}: no published figures for {label!r}; there are some for "
            f"{', '.join(PUBLISHED)}"
        )
    known = {step: loss for step, loss in PUBLISHED[label].items() if step <= config.meta.steps}
    return [Mark(step, loss * share) for step, loss in known.items() for share in (1.0, 0.5)]


def attempt(
    name: str,
    config: TrainConfig,
    wanted: Sequence[Mark],
    limit: float,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Attempt:
    """Meta-train until all marks are passed, or time or outer steps are over."""
    began = clock()
    trainer = MetaTrainer(config, device)
    trained = clock() - began
    validated, last_cost, last_trained = 0.0, 0.0, 0.0
    passed: dict[Mark, Passed | None] = dict.fromkeys(wanted)
    best = {mark.step: float("inf") for mark in wanted}
    while trained < limit and not trainer.finished and None in passed.values():
        before = clock()
        trainer.outer_step()
        trained += clock() - before
        is_last = trained >= limit or trainer.finished
        if validated + last_cost > VALIDATION_SHARE * trained and not is_last:
            continue
        before = clock()
        losses = trainer.validate().losses
        curve = geomean(losses.double().cpu().numpy())
        last_cost = clock() - before
        validated += last_cost
        for mark in wanted:
            best[mark.step] = min(best[mark.step], float(curve[mark.step]))
            if passed[mark] is None and curve[mark.step] <= mark.loss:
                passed[mark] = Passed(trained, last_trained, trainer.trajectories)
        last_trained = trained
    return Attempt(
        config=name,
        batch=config.meta.batch,
        passed=passed,
        seconds=trained,
        validation_seconds=validated,
        outer_steps=trainer.progress.outer_step,
        finished=trainer.finished,
        best=best,
    )


def table(found: Sequence[Attempt]) -> str:
    """For people: a row a mark."""
    rows = []
    for tried in found:
        for mark, passed in tried.passed.items():
            if passed is None:
                limit = f"not within {tried.seconds:.0f} s"
                end = f", all {tried.outer_steps} outer steps" if tried.finished else ""
                reached = [limit + end, "", ""]
            else:
                reached = [
                    f"{passed.seconds:.1f}",
                    f"{passed.not_before:.1f}",
                    f"{passed.trajectories:.0f}",
                ]
            name = tried.config.removesuffix(".yaml")
            loss, best = f"{mark.loss:.4g}", f"{tried.best[mark.step]:.4g}"
            rows.append([name, str(tried.batch), str(mark.step), loss, *reached, best])
    header = ["configuration", "B", "step", "mark", "seconds", "not before", "trajectories", "best"]
    return markdown_table(header, rows)


def main(world: World) -> None:
    """Try all configurations."""
    parser = argparse.ArgumentParser(description="Time to the published quality.")
    add_device(parser)
    add_json(parser)
    parser.add_argument("--config", nargs="+", default=list(CONFIGS), metavar="NAME")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key.sub=value", dest="overrides"
    )
    parser.add_argument("--limit", type=float, default=120.0, metavar="SECONDS")
    arguments = parser.parse_args()
    device = cli.device(arguments.device, world)
    configs = {name: load(TrainConfig, name, arguments.overrides) for name in arguments.config}
    wanted = {name: marks(config) for name, config in configs.items()}
    found = []
    for name, config in configs.items():
        tried = attempt(name, config, wanted[name], arguments.limit, device)
        found.append(tried)
        print(
            f"{name}: {tried.outer_steps} outer steps in {tried.seconds:.1f} s, "
            f"and {tried.validation_seconds:.1f} s of validation",
            flush=True,
        )
    print(f"\nSeconds of meta-training until a mark is passed\n\n{table(found)}")
    if arguments.json is not None:
        write_json(arguments.json, [tried.as_dict() for tried in found])


if __name__ == "__main__":
    cli.run(main)
