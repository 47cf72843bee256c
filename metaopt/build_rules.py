"""One way to make rules from their section of a configuration; ``build`` puts them together."""

from __future__ import annotations

from typing import Any

from metaopt.optimizers import Adam, GradientDescent, Momentum
from metaopt.rules import (
    CoordinateGroupElementLSTM,
    CoordinateStepSizeGroupElementLSTM,
    CoordinateUpdateLSTM,
    GroupElementLSTM,
    InformedUpdateLSTM,
    LayerUpdateLSTM,
    LocalUpdateLSTM,
    RandomGenerators,
    Rule,
    StepSizeGroupElementLSTM,
    UnitScalingLSTM,
)
from metaopt.rules.directions import (
    GeneratorEntries,
    InformedSteps,
    NaturalSteps,
    UpdateEntries,
    Whitening,
)
from metaopt.rules.flattened import RawGradient, SignedLogGradient, StatefulGradient
from metaopt.rules.step_size import Clamp, Natural, Sigmoid
from metaopt.schema import (
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
    TaskConfig,
    UnitConfig,
)
from metaopt.tasks import layer_shapes

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
