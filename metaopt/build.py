"""One way to make objects from a configuration: scripts, benchmarks, ``metaopt.load``.

Rules by themselves are made in ``build_rules``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from metaopt import families
from metaopt.augment import Hiding, InTurn, Rescaled
from metaopt.averaging import Average, ExponentialAverage, NoAverage
from metaopt.build_rules import rule
from metaopt.classical import GradientTeleport
from metaopt.config import ConfigError
from metaopt.errors import UserError
from metaopt.horizon import (
    Curriculum,
    Even,
    Fixed,
    Horizon,
    Lengths,
    LogUniform,
    RandomPairs,
)
from metaopt.lbfgs import LBFGS
from metaopt.loss_tasks import LossFamily
from metaopt.meta_loss import LogLoss, LogOfLast, MetaLoss, Normalised, SumOfLosses
from metaopt.network import LeakyReLU
from metaopt.optimizers import Adam, GradientDescent, MetaOptimizer, Momentum, Optimizer
from metaopt.pes import PersistentES
from metaopt.preconditioned import PreconditionedOptimizer, as_constant, differentiated
from metaopt.references import KFAC, SolveLast, WhitenLast
from metaopt.rules import Rule
from metaopt.rules.affine import AffineModule
from metaopt.rules.products import TF32, BFloat16, Full
from metaopt.scheduled import CosineAdamW
from metaopt.schema import (
    LEARNED,
    RandomConfig,
    TaskConfig,
    TeleporterConfig,
    TrainConfig,
)
from metaopt.schema_meta import (
    CurriculumConfig,
    FixedHorizonConfig,
    GradientConfig,
    MetaConfig,
    PersistentESConfig,
    RandomHorizonConfig,
)
from metaopt.streams import Stream
from metaopt.symmetry import (
    Action,
    BoundedNorm,
    CappedNorm,
    Cayley,
    Exponential,
    FirstOrder,
    FixedNorm,
    InexactActionError,
    Linear,
    NormLimit,
    Orthogonal,
    Refuse,
    Scaling,
    Shrink,
    TeleportEngine,
    ThroughData,
    Unguarded,
    UnitEngine,
)
from metaopt.tasks import RegressionFamily, TaskFamily, layer_shapes
from metaopt.unroll import Observe, as_judged, first_order, second_order
from metaopt.windows import Replayed, StepByStep, Windows

DTYPES = {"float32": torch.float32, "float64": torch.float64}
_ACTIONS: dict[str, type[Action]] = {
    "through_data": ThroughData,
    "linear": Linear,
    "scaling": Scaling,
    "orthogonal": Orthogonal,
}
_LIMITS: dict[str, Callable[[float], NormLimit]] = {
    "bounded": BoundedNorm,
    "capped": CappedNorm,
    "fixed": FixedNorm,
}
_PRODUCTS = {"full": Full, "tf32": TF32, "bfloat16": BFloat16}
_TRUNCATIONS = {"even": Even, "random": RandomPairs}


def task_family(config: TaskConfig) -> TaskFamily[Any]:
    """The task family of a configuration: of ``TaskBatch``, or of ``LossTasks`` of a user's class.

    What is in ``more`` is for ``training_tasks`` alone.

    Raises:
        UserError: one line, where a user's class is not there or does not keep the protocol.
    """
    if not config.is_own:
        return RegressionFamily(config)
    return _own_family(config.family, config.options or {}, "task.options")


def _own_family(name: str, options: Mapping[str, Any], field: str) -> LossFamily:
    """A user's family, checked."""
    family = LossFamily(families.make(name, options, field), name)
    family.check()
    return family


def require_units(config: TrainConfig, family: TaskFamily[Any]) -> None:
    """Raise ``UserError`` where units are to be scaled, and a family of training knows of none."""
    if config.teleporter is None or config.teleporter.action != "units":
        return
    for number, one in enumerate(family.families if isinstance(family, InTurn) else (family,)):
        if one.drawn(Stream.TRAIN, config.seed, 0, 1).units is None:
            where = f"task.more[{number - 1}]" if number else "task"
            raise UserError(
                f"field teleporter.action: units needs hidden units, and {config.task.family} "
                f"({where}) lists none: symmetries = metaopt.symmetries(network) in the class"
            )


def training_tasks(family: TaskFamily[Any], config: TrainConfig) -> TaskFamily[Any]:
    """What training tasks are drawn from: the task family, or a variation of it, if asked for.

    Args:
        family: that of ``config.task``.
        config: of the run.
    """
    if config.meta.rescale > 0:
        return Rescaled(family, config.meta.rescale)
    others = [
        _own_family(config.task.family, options, f"task.more[{i}]")
        for i, options in enumerate(config.task.more or ())
    ]
    return InTurn((family, *others)) if others else family


def hiding(config: MetaConfig, seed: int) -> Hiding:
    """What is hidden from the rules in which meta-batch."""
    return Hiding({"loss": config.hide.loss, "inputs": config.hide.inputs}, seed)


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
    """First or second order, and whose losses are judged."""
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


def windows(config: TrainConfig, optimizer: MetaOptimizer, device: torch.device) -> Windows:
    """What runs truncation windows and differentiates them: on a CUDA device, CUDA graphs.

    A user's tasks are observed anew in every step, with a mini-batch of its own: no graph holds it.

    Args:
        config: of the run.
        optimizer: whose parameters are phi.
        device: where it computes.
    """
    meta = config.meta
    of_window = (optimizer, observe(meta), meta_loss(meta))
    match meta.estimator:
        case PersistentESConfig(sigma=sigma, pairs=pairs):
            return PersistentES(*of_window, sigma, pairs, config.seed)
        case GradientConfig():
            step_by_step = StepByStep(*of_window)
    recordable = device.type == "cuda" and not config.task.is_own
    return Replayed(step_by_step) if recordable else step_by_step


def average(config: MetaConfig, optimizer: MetaOptimizer) -> Average:
    """What is validated and written."""
    if config.average is None:
        return NoAverage(optimizer)
    return ExponentialAverage(optimizer, config.average)


def engine(config: TeleporterConfig, task: TaskConfig) -> TeleportEngine | UnitEngine:
    """The teleport engine of a configuration.

    Raises:
        ConfigError: where the action cannot be exact on these tasks, if it has to be.
    """
    limit = _LIMITS[config.limit](config.max_norm)
    if config.action == "units":
        return UnitEngine(limit)
    match config.element:
        case "exponential":
            element: Any = Exponential(limit.max_norm)
        case "cayley":
            element = Cayley()
        case "first_order":
            element = FirstOrder()
    match config.guard:
        case "refuse":
            guard: Any = Refuse(config.tolerance)
        case "shrink":
            guard = Shrink(config.tolerance)
        case "none":
            guard = Unguarded()
    action = _ACTIONS[config.action]()
    if config.inexact == "error":
        try:
            for _, fan_in in layer_shapes(task)[:-1]:
                action.require_exact(LeakyReLU(task.slope), task.samples, fan_in)
        except InexactActionError as error:
            raise ConfigError(
                f"field teleporter.action: {error}; inexact: guard leaves it to the guard"
            ) from None
    return TeleportEngine(
        action=action,
        to_element=element,
        limit=limit,
        guard=guard,
        require_exact=config.inexact == "error",
    )


def meta_optimizer(config: TrainConfig) -> MetaOptimizer:
    """The meta-optimizer of a configuration, freshly initialised from its seed."""
    rules = {
        name: rule(name, given, config.task, config.seed)
        for name, given in config.rules.by_name().items()
    }
    for name, given in config.rules.by_name().items():
        if isinstance(given, LEARNED):
            rules[name].requires_grad_(not given.frozen)
    optimizer = _composed(config, rules).to(DTYPES[config.dtype])
    for module in optimizer.modules():
        if isinstance(module, AffineModule):
            module.products = _PRODUCTS[config.products]()
    return optimizer


def _composed(config: TrainConfig, rules: Mapping[str, Rule]) -> MetaOptimizer:
    """The rules and the teleport engine in the order that they act in."""
    if config.teleporter is None:
        return MetaOptimizer(rules, None)
    _require_kept_norms(config.rules.teleport, config.teleporter)
    teleporter = engine(config.teleporter, config.task)
    match config.teleporter.order:
        case "after":
            return MetaOptimizer(rules, teleporter)
        case "around":
            if config.rules.teleport is None:
                raise ConfigError(
                    "field teleporter.order: around needs rules.update and rules.teleport, found "
                    "rules.step_teleport"
                )
            # The configuration has refused units here.
            assert isinstance(teleporter, TeleportEngine)
            look = {1: as_constant, 2: differentiated}[config.meta.order]
            return PreconditionedOptimizer(rules, teleporter, look)


def _require_kept_norms(teleport: object, teleporter: TeleporterConfig) -> None:
    """Raise ``ConfigError`` where the limit would change the norms of random generators."""
    if not isinstance(teleport, RandomConfig):
        return
    if teleporter.limit != "capped":
        raise ConfigError(
            f"field teleporter.limit: capped keeps the norms of random generators, found "
            f"{teleporter.limit}"
        )
    if max(teleport.norms) > teleporter.max_norm:
        raise ConfigError(
            f"field rules.teleport.norms: at most teleporter.max_norm, {teleporter.max_norm:g}, "
            f"found {max(teleport.norms):g}"
        )


def hand_made(name: str, values: Mapping[str, float], horizon: int) -> Optimizer:
    """A hand-made optimizer.

    Args:
        name: in ``schema.HYPERPARAMETERS``.
        values: of its hyper-parameters.
        horizon: the step that it is judged at, for those with a schedule.
    """
    match name:
        case "GD":
            return MetaOptimizer({"update": GradientDescent(**values)}, None)
        case "Momentum":
            return MetaOptimizer({"update": Momentum(**values)}, None)
        case "Adam":
            return MetaOptimizer({"update": Adam(**values)}, None)
        case "AdamW+cosine":
            return MetaOptimizer({"update": CosineAdamW(**values, horizon=horizon)}, None)
        case "L-BFGS":
            return LBFGS(history=int(values["history"]))
        case "GD+teleport":
            return GradientTeleport(
                values["lr"],
                ascents=int(values["ascents"]),
                every=int(values["every"]),
                engine=_ascent_engine(values["norm"]),
            )
        case "K-FAC":
            return KFAC(**values)
        case "solve W2":
            return SolveLast()
        case "whiten W2":
            return WhitenLast()
    raise ValueError(f"no hand-made optimizer is called {name!r}")


def _ascent_engine(norm: float) -> TeleportEngine:
    """The engine of classical teleports: of a given norm, and left to the guard where inexact."""
    limit = FixedNorm(norm)
    tolerance = TeleporterConfig().tolerance
    return TeleportEngine(
        ThroughData(), Exponential(norm), limit, Refuse(tolerance), require_exact=False
    )
