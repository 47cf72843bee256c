"""The sections ``rules`` and ``teleporter`` of a configuration: what proposes, and what moves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from metaopt.base.fields import (
    Decay,
    PositiveFloat,
    Size,
)
from metaopt.base.fields import Model as _Model
from metaopt.base.fields import described as _field
from metaopt.base.fields import required as _required
from metaopt.tasks.config import TaskConfig as TaskConfig


class _Network(_Model):
    hidden: Size = _field(20, "size of the two LSTM cells")
    scale: PositiveFloat = _field(1.0, "factor on the network's outputs")
    outer_lr: PositiveFloat = _required("outer learning rate (Adam) of this network")
    frozen: bool = _field(False, "a control: the network stays as it was initialised")


class _Learned(_Network):
    free: PositiveFloat = _field(
        1.0, "factor on what outputs move without a direction that shapes it"
    )


class _WithBasis(_Learned):
    basis: Literal["entries", "directions"] = _field(
        "entries",
        "what outputs are: the entries themselves, or coefficients of known directions: natural "
        "steps in updates, powers of H H^T in generators",
    )


class _Flattened(_WithBasis):
    kind: Literal["lstm"] = _required("flattened rule: one LSTM on the whole gradient")
    gradient: Literal["raw", "signed_log", "stateful"] = _field(
        "raw",
        "what is fed: the gradient itself; on a logarithmic scale; that and the state of the run",
    )


class _Coordinate(_WithBasis):
    kind: Literal["coordinate_lstm"] = _required("coordinate-wise rule: one LSTM for all entries")


class _StepSize(_Model):
    step_min: PositiveFloat = _field(1e-7, "smallest step size")
    step_max: PositiveFloat = _field(5e-3, "largest step size")
    step_bound: Literal["sigmoid", "clamp", "natural"] = _field(
        "sigmoid",
        "smooth on a logarithmic scale; the paper's clamp; or clamped, in units of the largest "
        "safe step",
    )

    @model_validator(mode="after")
    def _ordered(self) -> _StepSize:
        if self.step_min >= self.step_max:
            raise ValueError(f"step_min must be below step_max, found {self.step_min}")
        return self


class FlattenedConfig(_Flattened):
    """m1 or m2 on the flattened gradient."""


class CoordinateConfig(_Coordinate):
    """m1 or m2 coordinate by coordinate."""


class InformedConfig(_Learned):
    """m1 coordinate by coordinate, given what m2 sees: a control."""

    kind: Literal["informed_lstm"] = _required(
        "coordinate-wise update rule on directions that is also given the products which m2 sees, "
        "as features and as preconditioners"
    )


class LayerConfig(_Network):
    """m1 parameter by parameter."""

    kind: Literal["layer_lstm"] = _required(
        "layer-wise update rule: one LSTM for all parameters, on statistics of mini-batches' "
        "gradients; its outputs mix running means of them, and give step size and decay"
    )


class UnitConfig(_Learned):
    """m2 hidden unit by hidden unit."""

    kind: Literal["unit_lstm"] = _required(
        "one LSTM for all hidden units, which are scaled one by one: for mini-batches"
    )


class FlattenedStepConfig(_Flattened, _StepSize):
    """The network of LSTM(lr,tele) on the flattened gradient."""


class CoordinateStepConfig(_Coordinate, _StepSize):
    """The network of LSTM(lr,tele), entry by entry."""


class RandomConfig(_Model):
    """Generators of given norms in random directions."""

    kind: Literal["random"] = _required("a control: random generators, without parameters")
    norms: Annotated[list[PositiveFloat], Field(min_length=1)] = _required(
        "Frobenius norm of the generators at inner step 1, 2, ..; the last one holds on"
    )


class GradientDescentConfig(_Model):
    """Gradient descent."""

    kind: Literal["gd"] = _required("gradient descent")
    lr: PositiveFloat = _required("step size")


class MomentumConfig(_Model):
    """Gradient descent with momentum."""

    kind: Literal["momentum"] = _required("gradient descent with momentum")
    lr: PositiveFloat = _required("step size")
    momentum: Decay = _field(0.9, "decay of the velocity")


class AdamConfig(_Model):
    """Adam."""

    kind: Literal["adam"] = _required("Adam")
    lr: PositiveFloat = _required("step size")
    beta1: Decay = _field(0.9, "decay of the mean of gradients")
    beta2: Decay = _field(0.999, "decay of the mean of squares")


UpdateConfig = Annotated[
    FlattenedConfig
    | CoordinateConfig
    | InformedConfig
    | LayerConfig
    | GradientDescentConfig
    | MomentumConfig
    | AdamConfig,
    Field(discriminator="kind"),
]


GeneratorConfig = Annotated[
    FlattenedConfig | CoordinateConfig | UnitConfig | RandomConfig, Field(discriminator="kind")
]


StepTeleportConfig = Annotated[
    FlattenedStepConfig | CoordinateStepConfig, Field(discriminator="kind")
]


LEARNED = (
    FlattenedConfig,
    CoordinateConfig,
    InformedConfig,
    LayerConfig,
    UnitConfig,
    FlattenedStepConfig,
    CoordinateStepConfig,
)


class RulesConfig(_Model):
    """What proposes updates and generators."""

    update: UpdateConfig | None = _field(None, "m1, or a hand-made update rule")
    teleport: GeneratorConfig | None = _field(None, "m2")
    step_teleport: StepTeleportConfig | None = _field(
        None, "one network for step size and generators; stands alone"
    )

    @model_validator(mode="after")
    def _one_update(self) -> RulesConfig:
        if (self.update is None) == (self.step_teleport is None):
            raise ValueError("give exactly one of update and step_teleport")
        if self.step_teleport is not None and self.teleport is not None:
            raise ValueError("step_teleport proposes generators itself; leave teleport out")
        if not any(
            isinstance(rule, LEARNED) and not rule.frozen for rule in self.by_name().values()
        ):
            raise ValueError(
                "nothing to learn: at least one rule must be an LSTM that is not frozen"
            )
        return self

    def by_name(self) -> dict[str, Any]:
        """The rules that are given, by field name."""
        fields = ("update", "teleport", "step_teleport")
        return {name: rule for name in fields if (rule := getattr(self, name)) is not None}


class TeleporterConfig(_Model):
    """How generators move the weights."""

    action: Literal["through_data", "linear", "scaling", "orthogonal", "units"] = _field(
        "through_data",
        "group action on each pair of adjacent layers; or, with unit_lstm, on each hidden unit of "
        "any network",
    )
    element: Literal["exponential", "cayley", "first_order"] = _field(
        "exponential", "generator to element; first_order is the paper's inexact pair"
    )
    order: Literal["after", "around"] = _field(
        "after", "teleport after the update; or, a control, there before it and back after it"
    )
    limit: Literal["bounded", "capped", "fixed"] = _field(
        "bounded",
        "generators smoothly below norm max_norm, cut off at it, or scaled to it (the paper)",
    )
    max_norm: PositiveFloat = _field(
        1.0, "Frobenius norm of the limit; for units the root mean square over them"
    )
    guard: Literal["refuse", "shrink", "none"] = _field(
        "refuse", "what happens to a teleport that drifts too far"
    )
    tolerance: PositiveFloat = _field(1e-4, "largest drift that the guard lets through")
    inexact: Literal["error", "guard"] = _field(
        "error", "an action that cannot be exact on the data: stop, or leave it to the guard"
    )

    @model_validator(mode="after")
    def _guarded(self) -> TeleporterConfig:
        if self.inexact == "guard" and self.guard == "none":
            raise ValueError("inexact: guard needs a guard, found guard: none")
        if self.action == "units" and self.order == "around":
            raise ValueError("action: units is for order: after, found around")
        if self.action == "units" and (self.guard != "none" or self.element != "exponential"):
            raise ValueError(
                f"action: units is exact on any data: expected element: exponential and guard: "
                f"none, found {self.element} and {self.guard}"
            )
        if self.element == "cayley" and self.max_norm >= 2:
            raise ValueError(f"cayley needs max_norm below 2, found {self.max_norm}")
        return self
