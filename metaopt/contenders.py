"""What is evaluated: learned optimizers from checkpoints, hand-made ones as they were tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from metaopt import build, learned
from metaopt.checkpoint import CheckpointError
from metaopt.distributed import World
from metaopt.learned import LearnedRule
from metaopt.optimizers import Optimizer
from metaopt.rules.products import note
from metaopt.schema import REFERENCES, EvalConfig
from metaopt.tuning import edges, tune

Kind = Literal["learned", "baseline", "reference"]


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


def learned_contenders(
    paths: Sequence[Path], device: torch.device, required: bool, world: World
) -> list[Contender]:
    """Checkpoints as contenders; two of one name get `` #seed``.

    Args:
        paths: of checkpoints.
        device: where to compute.
        required: a damaged file is an error; otherwise it is left out with a line.
        world: whose first process says that line.
    """
    rules = []
    for path in paths:
        try:
            rules.append((path, learned.load(path, device)))
        except CheckpointError as error:
            if required:
                raise
            world.say(f"left out: {error}")
    for path, rule in rules:
        if (
            line := note(rule.config.products, build.DTYPES[rule.config.dtype], device)
        ) is not None:
            world.say(f"{path}: {line}")
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


def baseline_contenders(
    config: EvalConfig, device: torch.device, cache: Path, world: World
) -> list[Contender]:
    """The hand-made optimizers of a configuration, tuned on validation tasks."""
    return [
        Contender(
            choice.name,
            "reference" if choice.base in REFERENCES else "baseline",
            build.hand_made(choice.base, choice.values, choice.step),
            {
                "hyperparameters": choice.values,
                "tuned_for_step": choice.step,
                "validation_loss": choice.validation_loss,
                "at_the_edge_of_the_grid": edges(choice, config),
            },
        )
        for choice in tune(config, device, cache, world)
    ]
