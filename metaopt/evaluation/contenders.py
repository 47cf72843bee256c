"""What is evaluated: learned optimizers from checkpoints, hand-made ones as they were tuned."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from metaopt.base.checkpoint import CheckpointError
from metaopt.base.fields import DTYPES
from metaopt.base.process import World
from metaopt.base.tables import printable
from metaopt.evaluation.config import EvalConfig
from metaopt.evaluation.tuning import edges, tune
from metaopt.optim import learned
from metaopt.optim.hub import SHIPPED
from metaopt.optim.learned import LearnedRule
from metaopt.optim.reach import Reach
from metaopt.rules.baselines import BASELINES, hand_made
from metaopt.rules.composed import Optimizer
from metaopt.rules.learned.precision import note

_OF_A_FOLDER = ("optimizer.safetensors", "model.safetensors")
"""Names of files that say nothing of a rule: a run's best, and that of a shared folder."""

FROM = "from"
"""The field of an origin that says where a learned optimizer comes from (``hub.origin``)."""

Kind = Literal["learned", "baseline", "reference"]


@dataclass(frozen=True)
class Contender:
    """An optimizer to be evaluated.

    Attributes:
        name: its name in all results.
        kind: ``learned``, ``baseline`` or ``reference``.
        optimizer: takes the steps.
        origin: the path of a learned optimizer, with a short form under ``from``; or the
            hyper-parameters that were chosen for a hand-made one.
        reach: the steps that it was meta-trained for and tested to; None if it was not
            meta-trained.
        label: the name in the file of a learned optimizer, which several may share.
    """

    name: str
    kind: Kind
    optimizer: Optimizer
    origin: dict[str, Any]
    reach: Reach | None = None
    label: str = ""

    @property
    def is_own(self) -> bool:
        """Whether it is a learned optimizer of the user's own."""
        return self.kind == "learned" and self.origin.get(FROM) != SHIPPED


def learned_contenders(
    paths: Sequence[Path], device: torch.device, required: bool, world: World
) -> list[Contender]:
    """Checkpoints as contenders, each by the name in it.

    Args:
        paths: the checkpoints.
        device: the device to compute on.
        required: a damaged file is an error; otherwise it is left out with a line.
        world: the processes; the first one prints that line.
    """
    rules = []
    for path in paths:
        try:
            rules.append((path, learned.load(path, device)))
        except CheckpointError as error:
            if required:
                raise
            world.say(f"left out: {error}")
    noted: dict[str, list[str]] = {}
    for path, rule in rules:
        if (line := note(rule.config.precision, DTYPES[rule.config.dtype], device)) is not None:
            noted.setdefault(line, []).append(str(path))
    for line, places in noted.items():
        world.say(f"{', '.join(places)}: {line}")
    return [
        Contender(
            label := printable(rule.name).strip() or "no label",
            "learned",
            rule.optimizer,
            _origin(path, rule),
            rule.reach,
            label,
        )
        for path, rule in rules
    ]


def captions(contenders: Sequence[Contender]) -> list[str]:
    """What pictures call the contenders: a learned one ``LABEL, FROM``; if that is taken, by name.

    Args:
        contenders: told apart.
    """
    found = []
    for contender in contenders:
        place = contender.origin.get(FROM)
        alike = [
            other
            for other in contenders
            if (other.label, other.origin.get(FROM)) == (contender.label, place)
        ]
        name = contender.name if len(alike) > 1 else contender.label
        found.append(contender.name if place is None else printable(f"{name}, {place}"))
    return found


def told_apart(contenders: Sequence[Contender]) -> list[Contender]:
    """The contenders, renamed so that no two have the same name.

    Learned optimizers of one name are called ``NAME (runs/mine)`` and ``NAME (pretrained/theirs)``,
    with as few of the last parts of their paths as tell them apart; file names that all runs use
    are left out. Hand-made optimizers keep their names; the second of a name is ``NAME (2)``.
    """
    names: list[str] = []
    for contender in contenders:
        earlier = [c.name for c in contenders[: len(names)] if c.kind != "learned"]
        again = contender.kind != "learned" and contender.name in earlier
        count = f" ({earlier.count(contender.name) + 1})" if again else ""
        names.append(contender.name + count)
    longer = [_longer_names(contender, i) for i, contender in enumerate(contenders)]
    while True:
        # All optimizers of one name get longer names, so that none keeps the bare one.
        alike = [
            i
            for i, name in enumerate(names)
            if names.count(name) > 1 and contenders[i].kind == "learned"
        ]
        if not alike:
            return [replace(c, name=name) for c, name in zip(contenders, names, strict=True)]
        for i in alike:
            names[i] = next(longer[i])


def _longer_names(contender: Contender, place: int) -> Iterator[str]:
    """The name with ever more of where it comes from; a file that is there twice is numbered."""
    path = Path(os.path.abspath(contender.origin.get("checkpoint", "")))
    of_a_folder = path.name in _OF_A_FOLDER
    for whole in (path.parent if of_a_folder else path.with_suffix(""), path):
        for count in range(1, len(whole.parts)):
            yield printable(f"{contender.name} ({'/'.join(whole.parts[-count:])})")
    for number in itertools.count(place + 1):
        yield printable(f"{contender.name} ({path}, {number})")


def _origin(path: Path, rule: LearnedRule) -> dict[str, Any]:
    return {
        "checkpoint": str(path),
        FROM: rule.origin,
        "seed": rule.config.seed,
        "training": rule.training,
    }


def baseline_contenders(
    config: EvalConfig, device: torch.device, cache: Path, world: World
) -> list[Contender]:
    """The hand-made optimizers of a configuration, tuned on validation tasks."""
    return [
        Contender(
            choice.name,
            "reference" if BASELINES[choice.base].is_reference else "baseline",
            hand_made(choice.base, choice.values, choice.step),
            {
                "hyperparameters": choice.values,
                "tuned_for_step": choice.step,
                "validation_loss": choice.validation_loss,
                "at_the_edge_of_the_grid": edges(choice, config),
            },
        )
        for choice in tune(config, device, cache, world)
    ]
