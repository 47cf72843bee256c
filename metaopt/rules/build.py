"""One way to make rules, the teleport engine and whole optimizers from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from metaopt.base.config import ConfigError
from metaopt.base.fields import DTYPES
from metaopt.base.network import LeakyReLU
from metaopt.rules.around import PreconditionedOptimizer, as_constant, differentiated
from metaopt.rules.base import Rule
from metaopt.rules.composed import MetaOptimizer, Optimizer
from metaopt.rules.config import (
    LEARNED,
    AdamConfig,
    CoordinateConfig,
    CoordinateStepConfig,
    FlattenedConfig,
    FlattenedStepConfig,
    GradientDescentConfig,
    InformedConfig,
    LayerConfig,
    MomentumConfig,
    RandomConfig,
    RulesConfig,
    TeleporterConfig,
    UnitConfig,
)
from metaopt.rules.gradient_teleport import GradientTeleport
from metaopt.rules.hand_made import Adam, CosineAdamW, GradientDescent, Momentum
from metaopt.rules.lbfgs import LBFGS
from metaopt.rules.learned.affine import AffineModule
from metaopt.rules.learned.coordinate import (
    CoordinateGroupElementLSTM,
    CoordinateStepSizeGroupElementLSTM,
    CoordinateUpdateLSTM,
    InformedUpdateLSTM,
)
from metaopt.rules.learned.directions import (
    GeneratorEntries,
    InformedSteps,
    NaturalSteps,
    UpdateEntries,
    Whitening,
)
from metaopt.rules.learned.flattened import (
    GroupElementLSTM,
    LocalUpdateLSTM,
    RawGradient,
    SignedLogGradient,
    StatefulGradient,
    StepSizeGroupElementLSTM,
)
from metaopt.rules.learned.layer import LayerUpdateLSTM
from metaopt.rules.learned.precision import TF32, BFloat16, Full
from metaopt.rules.learned.step_size import Clamp, Natural, Sigmoid
from metaopt.rules.learned.unit import UnitScalingLSTM
from metaopt.rules.random_generators import RandomGenerators
from metaopt.rules.references import KFAC, SolveLast, WhitenLast
from metaopt.symmetry.actions import (
    Action,
    InexactActionError,
    Linear,
    Orthogonal,
    Scaling,
    ThroughData,
)
from metaopt.symmetry.limits import BoundedNorm, CappedNorm, FixedNorm, NormLimit
from metaopt.symmetry.maps import Cayley, Exponential, FirstOrder
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.regression import layer_shapes
from metaopt.teleport.engine import TeleportEngine
from metaopt.teleport.guard import Refuse, Shrink, Unguarded
from metaopt.teleport.unit_engine import UnitEngine

_FLAT_INPUTS = {
    "raw": RawGradient,
    "signed_log": SignedLogGradient,
    "stateful": StatefulGradient,
}
_UPDATE_BASES = {"entries": UpdateEntries, "directions": NaturalSteps}
_GENERATOR_BASES = {"entries": GeneratorEntries, "directions": Whitening}
_FLATTENED: dict[str, Any] = {
    "update": LocalUpdateLSTM,
    "teleport": GroupElementLSTM,
    "step_teleport": StepSizeGroupElementLSTM,
}
_COORDINATE: dict[str, Any] = {
    "update": CoordinateUpdateLSTM,
    "teleport": CoordinateGroupElementLSTM,
    "step_teleport": CoordinateStepSizeGroupElementLSTM,
}
_STEP_BOUNDS: dict[str, Any] = {"sigmoid": Sigmoid, "clamp": Clamp, "natural": Natural}


def rule(name: str, config: Any, task: TaskConfig, seed: int) -> Rule:
    """The rule of a configuration.

    Args:
        name: ``update``, ``teleport`` or ``step_teleport``: its place in ``RulesConfig``.
        config: what stands there.
        task: fixes the shapes of flattened rules.
        seed: of the initialisation.
    """
    bases: dict[str, Any] = _UPDATE_BASES if name == "update" else _GENERATOR_BASES
    match config:
        case FlattenedStepConfig() | CoordinateStepConfig():
            bound = _STEP_BOUNDS[config.step_bound](config.step_min, config.step_max)
            more: dict[str, Any] = {"bound": bound}
        case _:
            more = {}
    match config:
        case FlattenedConfig() | FlattenedStepConfig():
            return _FLATTENED[name](
                layer_shapes(task),
                config.hidden,
                _FLAT_INPUTS[config.gradient](),
                bases[config.basis](config.free),
                config.scale,
                seed=seed,
                name=name,
                **more,
            )
        case InformedConfig():
            return InformedUpdateLSTM(
                InformedSteps(config.free), config.hidden, config.scale, seed=seed, name=name
            )
        case LayerConfig():
            return LayerUpdateLSTM(config.hidden, config.scale, seed, name)
        case UnitConfig():
            return UnitScalingLSTM(config.hidden, config.scale, config.free, seed, name)
        case CoordinateConfig() | CoordinateStepConfig():
            return _COORDINATE[name](
                basis=bases[config.basis](config.free),
                hidden=config.hidden,
                scale=config.scale,
                seed=seed,
                name=name,
                **more,
            )
        case RandomConfig():
            return RandomGenerators(config.norms, seed)
        case GradientDescentConfig():
            return GradientDescent(config.lr)
        case MomentumConfig():
            return Momentum(config.lr, config.momentum)
        case AdamConfig():
            return Adam(config.lr, config.beta1, config.beta2)
    raise TypeError(f"no rule for {config!r}")


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


def composed(
    rules: RulesConfig,
    teleporter: TeleporterConfig | None,
    task: TaskConfig,
    *,
    dtype: str,
    products: str,
    seed: int,
    order: int,
) -> MetaOptimizer:
    """The meta-optimizer of these sections of a configuration, freshly initialised.

    Args:
        rules: what proposes.
        teleporter: how generators move the weights; None where no rule proposes any.
        task: fixes the shapes of flattened rules.
        dtype: a name in ``DTYPES``, of the networks.
        products: precision of the products of the LSTMs' weights.
        seed: of the initialisation.
        order: of the meta-gradient, 1 or 2.
    """
    made = {name: rule(name, given, task, seed) for name, given in rules.by_name().items()}
    for name, given in rules.by_name().items():
        if isinstance(given, LEARNED):
            made[name].requires_grad_(not given.frozen)
    optimizer = _with_engine(made, rules, teleporter, task, order).to(DTYPES[dtype])
    for module in optimizer.modules():
        if isinstance(module, AffineModule):
            module.products = _PRODUCTS[products]()
    return optimizer


def _with_engine(
    made: Mapping[str, Rule],
    rules: RulesConfig,
    teleporter: TeleporterConfig | None,
    task: TaskConfig,
    order: int,
) -> MetaOptimizer:
    """The rules and the teleport engine in the order that they act in."""
    if teleporter is None:
        return MetaOptimizer(made, None)
    _require_kept_norms(rules.teleport, teleporter)
    moving = engine(teleporter, task)
    match teleporter.order:
        case "after":
            return MetaOptimizer(made, moving)
        case "around":
            if rules.teleport is None:
                raise ConfigError(
                    "field teleporter.order: around needs rules.update and rules.teleport, found "
                    "rules.step_teleport"
                )
            # The configuration has refused units here.
            assert isinstance(moving, TeleportEngine)
            look = {1: as_constant, 2: differentiated}[order]
            return PreconditionedOptimizer(made, moving, look)


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
        name: in ``evaluation.config.HYPERPARAMETERS``.
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
