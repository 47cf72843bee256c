"""One way to make objects from a configuration: scripts, benchmarks, ``metaopt.load``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from metaopt.classical import GradientTeleport
from metaopt.config import ConfigError
from metaopt.meta_loss import LogLoss, MetaLoss, SumOfLosses
from metaopt.network import LeakyReLU
from metaopt.optimizers import LBFGS, Adam, GradientDescent, MetaOptimizer, Momentum, Optimizer
from metaopt.references import KFAC, SolveLast, WhitenLast
from metaopt.rules import (
    CoordinateGroupElementLSTM,
    CoordinateStepSizeGroupElementLSTM,
    CoordinateUpdateLSTM,
    GroupElementLSTM,
    LocalUpdateLSTM,
    Rule,
    StepSizeGroupElementLSTM,
)
from metaopt.rules.affine import AffineModule
from metaopt.rules.features import raw, signed_log
from metaopt.rules.products import TF32, BFloat16, Full
from metaopt.rules.step_size import Clamp, Sigmoid
from metaopt.schema import (
    AdamConfig,
    CoordinateConfig,
    CoordinateStepConfig,
    FlattenedConfig,
    FlattenedStepConfig,
    GradientDescentConfig,
    MetaConfig,
    MomentumConfig,
    TaskConfig,
    TeleporterConfig,
    TrainConfig,
)
from metaopt.symmetry import (
    Action,
    BoundedNorm,
    Cayley,
    Exponential,
    FirstOrder,
    FixedNorm,
    InexactActionError,
    Linear,
    Orthogonal,
    Refuse,
    Scaling,
    Shrink,
    TeleportEngine,
    ThroughData,
    Unguarded,
)
from metaopt.tasks import RegressionFamily, layer_shapes
from metaopt.unroll import Observe, first_order, second_order
from metaopt.windows import Replayed, StepByStep, Windows

DTYPES = {"float32": torch.float32, "float64": torch.float64}
_ACTIONS: dict[str, type[Action]] = {
    "through_data": ThroughData,
    "linear": Linear,
    "scaling": Scaling,
    "orthogonal": Orthogonal,
}
_LIMITS = {"bounded": BoundedNorm, "fixed": FixedNorm}
_TRANSFORMS = {"raw": raw, "signed_log": signed_log}
_PRODUCTS = {"full": Full, "tf32": TF32, "bfloat16": BFloat16}
_STEP_BOUNDS = {"sigmoid": Sigmoid, "clamp": Clamp}


def task_family(config: TaskConfig) -> RegressionFamily:
    """The task family of a configuration."""
    return RegressionFamily(config)


def observe(config: MetaConfig) -> Observe:
    """First or second order."""
    return {1: first_order, 2: second_order}[config.order]


def meta_loss(config: MetaConfig) -> MetaLoss:
    """The objective of a window."""
    match config.loss:
        case "log":
            return LogLoss(config.epsilon)
        case "sum":
            return SumOfLosses()


def windows(config: MetaConfig, optimizer: MetaOptimizer, device: torch.device) -> Windows:
    """What runs truncation windows: on a CUDA device, CUDA graphs."""
    step_by_step = StepByStep(optimizer, observe(config), meta_loss(config))
    return Replayed(step_by_step) if device.type == "cuda" else step_by_step


def engine(config: TeleporterConfig, task: TaskConfig) -> TeleportEngine:
    """The teleport engine of a configuration.

    Raises:
        ConfigError: where the action cannot be exact on these tasks, if it has to be.
    """
    limit = _LIMITS[config.limit](config.max_norm)
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


def rule(name: str, config: Any, task: TaskConfig, seed: int) -> Rule:
    """The rule of a configuration.

    Args:
        name: ``update``, ``teleport`` or ``step_teleport``: its place in ``RulesConfig``.
        config: what stands there.
        task: fixes the shapes of flattened rules.
        seed: of the initialisation.
    """
    match config:
        case FlattenedStepConfig():
            bound = _STEP_BOUNDS[config.step_bound](config.step_min, config.step_max)
            return StepSizeGroupElementLSTM(
                layer_shapes(task),
                config.hidden,
                _TRANSFORMS[config.gradient],
                config.scale,
                bound=bound,
                seed=seed,
                name=name,
            )
        case CoordinateStepConfig():
            bound = _STEP_BOUNDS[config.step_bound](config.step_min, config.step_max)
            return CoordinateStepSizeGroupElementLSTM(
                config.hidden, config.scale, bound=bound, seed=seed, name=name
            )
        case FlattenedConfig():
            flattened = {"update": LocalUpdateLSTM, "teleport": GroupElementLSTM}[name]
            return flattened(
                layer_shapes(task),
                config.hidden,
                _TRANSFORMS[config.gradient],
                config.scale,
                seed=seed,
                name=name,
            )
        case CoordinateConfig():
            coordinate = {"update": CoordinateUpdateLSTM, "teleport": CoordinateGroupElementLSTM}
            return coordinate[name](config.hidden, config.scale, seed=seed, name=name)
        case GradientDescentConfig():
            return GradientDescent(config.lr)
        case MomentumConfig():
            return Momentum(config.lr, config.momentum)
        case AdamConfig():
            return Adam(config.lr, config.beta1, config.beta2)
    raise TypeError(f"no rule for {config!r}")


def meta_optimizer(config: TrainConfig) -> MetaOptimizer:
    """The meta-optimizer of a configuration, freshly initialised from its seed."""
    rules = {
        name: rule(name, given, config.task, config.seed)
        for name, given in config.rules.by_name().items()
    }
    teleporter = None if config.teleporter is None else engine(config.teleporter, config.task)
    optimizer = MetaOptimizer(rules, teleporter).to(DTYPES[config.dtype])
    for module in optimizer.modules():
        if isinstance(module, AffineModule):
            module.products = _PRODUCTS[config.products]()
    return optimizer


def hand_made(name: str, values: Mapping[str, float]) -> Optimizer:
    """A hand-made optimizer, by its name in ``schema.HYPERPARAMETERS``, and its settings."""
    match name:
        case "GD":
            return MetaOptimizer({"update": GradientDescent(**values)}, None)
        case "Momentum":
            return MetaOptimizer({"update": Momentum(**values)}, None)
        case "Adam":
            return MetaOptimizer({"update": Adam(**values)}, None)
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
