"""One way to make objects from a configuration: scripts, benchmarks, ``metaopt.load``.

Rules by themselves are made in ``rules.build``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from metaopt.base.errors import UserError
from metaopt.base.streams import Stream
from metaopt.meta import compiling
from metaopt.meta.averaging import Average, ExponentialAverage, NoAverage
from metaopt.meta.config import (
    CurriculumConfig,
    FixedHorizonConfig,
    GradientConfig,
    MetaConfig,
    PersistentESConfig,
    RandomHorizonConfig,
    TrainConfig,
)
from metaopt.meta.groups import Fitting, Grouped
from metaopt.meta.horizon import (
    Curriculum,
    Even,
    Fixed,
    Horizon,
    Lengths,
    LogUniform,
    RandomPairs,
    Truncation,
    Whole,
)
from metaopt.meta.looks import Observe, as_judged, first_order, second_order
from metaopt.meta.loss import LogLoss, LogOfLast, MetaLoss, Normalised, SumOfLosses
from metaopt.meta.pes import PersistentES
from metaopt.meta.windows import Replayed, StepByStep, Windows
from metaopt.rules.build import composed
from metaopt.rules.composed import MetaOptimizer
from metaopt.tasks.base import TaskFamily
from metaopt.tasks.build import _own_family
from metaopt.tasks.variations import Hiding, InTurn, Rescaled
from metaopt.teleport.config import EXACT, UNITS

_TRUNCATIONS: dict[str, Callable[[int], Truncation]] = {
    "even": Even,
    "random": RandomPairs,
    "whole": Whole,
}


NO_PAIRS = (
    "the symmetries of its class hold no two factors of its weights with nothing but linear maps "
    "between them: print(metaopt.symmetries(network)) says what there is"
)
"""What to look at where a configuration moves linear pairs and tasks have none."""


def require_symmetries(config: TrainConfig, family: TaskFamily[Any]) -> None:
    """Raise ``UserError`` where a family of training knows nothing that teleports could move."""
    action = None if config.teleporter is None else config.teleporter.action
    if action not in EXACT:
        return
    for number, one in enumerate(family.families if isinstance(family, InTurn) else (family,)):
        tasks = one.drawn(Stream.TRAIN, config.seed, 0, 1)
        if (tasks.units if action == UNITS else tasks.pairs) is None:
            where = f"task.more[{number - 1}]" if number else "task"
            needs = "hidden units that can be scaled" if action == UNITS else "linear pairs"
            why = one.no_units if action == UNITS else NO_PAIRS
            raise UserError(
                f"field teleporter.action: {action} needs {needs}, and of {config.task.family} "
                f"({where}) there are none: {why}"
            )


def training_tasks(family: TaskFamily[Any], config: TrainConfig) -> TaskFamily[Any]:
    """What training tasks are drawn from: the task family, or a variation of it, if asked for.

    Args:
        family: the task family of ``config.task``.
        config: the configuration of the run.
    """
    if config.meta.rescale > 0:
        return Rescaled(family, config.meta.rescale)
    others = [
        _own_family(config.task.family, options, f"task.more[{i}]")
        for i, options in enumerate(config.task.more or ())
    ]
    return InTurn((family, *others)) if others else family


def hiding(config: MetaConfig, seed: int) -> Hiding:
    """Which parts of the observation are hidden from the rules in which meta-batch."""
    shares = {"loss": config.hide.loss, "inputs": config.hide.inputs, "left": config.hide.left}
    return Hiding(shares, seed)


def lengths(config: MetaConfig, seed: int) -> Lengths:
    """How long the trajectories of meta-training are, and their windows."""
    match config.horizon:
        case FixedHorizonConfig():
            horizon: Horizon = Fixed(config.steps)
        case CurriculumConfig(first=first, share=share):
            horizon = Curriculum(config.steps, config.unroll, first, share)
        case RandomHorizonConfig(low=low):
            horizon = LogUniform(config.steps, config.unroll, low)
    truncation = _TRUNCATIONS[config.truncation](config.unroll)
    return Lengths(horizon, truncation, config.steps, seed)


def observe(config: MetaConfig) -> Observe:
    """How weights are looked at: first or second order, and which loss is judged."""
    by_order = {1: first_order, 2: second_order}[config.order]
    return as_judged(by_order) if config.objective == "judged" else by_order


def meta_loss(config: MetaConfig) -> MetaLoss:
    """The objective of a window."""
    match config.loss:
        case "log":
            return LogLoss(config.epsilon)
        case "log_last":
            return LogOfLast(config.epsilon)
        case "normalised":
            return Normalised(config.epsilon)
        case "sum":
            return SumOfLosses()


def windows(
    config: TrainConfig,
    optimizer: MetaOptimizer,
    device: torch.device,
    say: Callable[[str], object] = print,
) -> Windows:
    """What runs truncation windows and differentiates them: on a CUDA device, CUDA graphs.

    A user's tasks are observed anew in every step, with a mini-batch of its own: no graph holds it.
    On a CPU a window that takes too much memory as a whole is run in groups, and the steps of long
    runs are compiled (``compiling``).

    Args:
        config: the configuration of the run.
        optimizer: the meta-optimizer; its parameters are phi.
        device: the device that the windows run on.
        say: tells users a line.
    """
    meta = config.meta
    of_window = (optimizer, observe(meta), meta_loss(meta))
    match meta.estimator:
        case PersistentESConfig(sigma=sigma, pairs=pairs):
            return PersistentES(*of_window, sigma, pairs, config.seed)
        case GradientConfig():
            step_by_step = StepByStep(*of_window, compiling.advance(config, device, say))
    recordable = device.type == "cuda" and not config.task.is_own
    of_group = Replayed(step_by_step) if recordable else step_by_step
    if meta.group is not None:
        return Grouped(of_group, optimizer, meta.group)
    return Fitting(of_group, optimizer, observe(meta)) if device.type == "cpu" else of_group


def average(config: MetaConfig, optimizer: MetaOptimizer) -> Average:
    """The average of phi that is validated and written, or phi itself."""
    if config.average is None:
        return NoAverage(optimizer)
    return ExponentialAverage(optimizer, config.average)


def meta_optimizer(config: TrainConfig) -> MetaOptimizer:
    """The meta-optimizer of a run, freshly initialised from its seed."""
    return composed(
        config.rules,
        config.teleporter,
        config.task,
        dtype=config.dtype,
        precision=config.precision,
        seed=config.seed,
        order=config.meta.order,
    )
