"""The fields of all configurations: types, defaults, bounds, and what each means.

``config`` reads YAML into these models. ``python -m metaopt fields`` prints them as the table
that stands in the README. The section ``meta`` is in ``schema_meta``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from metaopt.schema_meta import MetaConfig
from metaopt.schema_task import ONLY_THE_LOSS
from metaopt.schema_task import TaskConfig as TaskConfig
from metaopt.schema_types import Decay, Name, Positive, PositiveFloat, Seed, Size, Text
from metaopt.schema_types import Model as _Model
from metaopt.schema_types import described as _field
from metaopt.schema_types import required as _required

DtypeName = Literal["float32", "float64"]
ProductsName = Literal["full", "tf32", "bfloat16"]


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


class ValidationConfig(_Model):
    """Validation on its own tasks."""

    every: Positive = _field(100, "outer steps between validations")
    tasks: Positive = _field(64, "validation tasks")


class TrainConfig(_Model):
    """A meta-training run."""

    name: Name = _required("of the run; its folder is runs/<name>")
    label: Text = _required("of the optimizer in tables and figures")
    seed: Seed = _field(0, "of training tasks, validation tasks and initialisation")
    dtype: DtypeName = _field("float32", "of optimizees and rules")
    products: ProductsName = _field(
        "full",
        "precision of the products of the LSTMs' weights: that of dtype; tf32 on CUDA; or bfloat16",
    )
    task: TaskConfig = _field(TaskConfig(), "what is trained on")
    rules: RulesConfig = _required("what is learned")
    teleporter: TeleporterConfig | None = _field(None, "needed where a rule proposes generators")
    meta: MetaConfig = _field(MetaConfig(), "the outer loop")
    validation: ValidationConfig = _field(ValidationConfig(), "validation")

    @model_validator(mode="after")
    def _teleporter(self) -> TrainConfig:
        if self.name == "eval":
            raise ValueError("name: runs/eval is where eval_meta.py writes, found 'eval'")
        proposes = self.rules.teleport is not None or self.rules.step_teleport is not None
        if proposes != (self.teleporter is not None):
            raise ValueError(
                "rules.teleport or rules.step_teleport and teleporter: give both or neither"
            )
        return self

    @model_validator(mode="after")
    def _units(self) -> TrainConfig:
        by_units = isinstance(self.rules.teleport, UnitConfig)
        if self.teleporter is not None and by_units != (self.teleporter.action == "units"):
            raise ValueError(
                f"teleporter.action: units is what rules.teleport of kind unit_lstm needs, and "
                f"nothing else; found {self.teleporter.action}"
            )
        reads_inputs = self.teleporter is not None and not by_units
        if self.meta.hide.inputs > 0 and (
            reads_inputs or isinstance(self.rules.update, InformedConfig)
        ):
            raise ValueError("meta.hide.inputs: these rules need the layers' inputs; leave 0")
        return self

    @model_validator(mode="after")
    def _own_family(self) -> TrainConfig:
        if not self.task.is_own:
            return self
        update, teleport = self.rules.update, self.rules.teleport
        if not isinstance(update, CoordinateConfig | LayerConfig | AdamConfig | MomentumConfig):
            raise ValueError(
                f"rules: {ONLY_THE_LOSS} rules.update of kind layer_lstm, coordinate_lstm, adam or "
                f"momentum"
            )
        if not isinstance(teleport, UnitConfig | None):
            raise ValueError(f"rules: {ONLY_THE_LOSS} rules.teleport of kind unit_lstm")
        if self.meta.rescale > 0:
            raise ValueError("meta.rescale: a family of your own is sampled as it is; leave it 0")
        return self


Grid = dict[str, Annotated[list[PositiveFloat | Positive | Literal[0]], Field(min_length=1)]]

# What each hand-made optimizer is tuned over; also the list of those that exist.
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    "GD": ("lr",),
    "Momentum": ("lr", "momentum"),
    "Adam": ("lr", "beta1", "beta2"),
    "AdamW+cosine": ("lr", "beta1", "decay"),
    "L-BFGS": ("history",),
    "GD+teleport": ("lr", "norm", "ascents", "every"),
    "K-FAC": ("lr", "damping"),
    "solve W2": (),
    "whiten W2": (),
}
# Those that know more than first-order methods do.
REFERENCES = ("K-FAC", "solve W2", "whiten W2")
# Those that need to know the network of the tasks.
_KNOWING = ("GD+teleport", *REFERENCES)


def parse_baseline(name: str) -> tuple[str, int | None]:
    """``Adam@20`` -> (``Adam``, 20): tuned for step 20; without @, for the last step."""
    base, at, step = name.partition("@")
    if base not in HYPERPARAMETERS or (at and not (step.isdigit() and int(step) > 0)):
        known = ", ".join(HYPERPARAMETERS)
        raise ValueError(f"baselines are {known}, or one of them @STEP (Adam@20), found {name!r}")
    return base, int(step) if at else None


class TuningConfig(_Model):
    """How hand-made optimizers are tuned, on validation tasks."""

    tasks: Positive = _field(64, "validation tasks")
    seed: Seed = _field(0, "of the validation tasks")
    grids: dict[str, Grid] = _required("values to try for each hyper-parameter of each optimizer")

    def grid(self, base: str) -> Grid:
        """What an optimizer is tuned over; empty for one without hyper-parameters."""
        return self.grids.get(base, {})

    @model_validator(mode="after")
    def _complete(self) -> TuningConfig:
        for name, grid in self.grids.items():
            if name not in HYPERPARAMETERS:
                raise ValueError(f"grids are for {', '.join(HYPERPARAMETERS)}, found {name!r}")
            if set(grid) != set(HYPERPARAMETERS[name]):
                wanted = ", ".join(HYPERPARAMETERS[name])
                raise ValueError(f"the grid of {name} needs {wanted}, found {', '.join(grid)}")
            for parameter, values in grid.items():
                for value in values:
                    if not _is_possible(parameter, value):
                        raise ValueError(f"the grid of {name}: {parameter} cannot be {value!r}")
        return self


def _is_possible(parameter: str, value: float) -> bool:
    match parameter:
        case "lr" | "norm" | "damping":
            return value > 0
        case "decay":
            return value >= 0
        case "history" | "ascents" | "every":
            return isinstance(value, int) and value >= 1
        case _:
            return 0 <= value < 1


class EvalConfig(_Model):
    """An evaluation on unseen tasks."""

    tasks: Positive = _field(256, "test tasks")
    task_seed: Seed = _field(0, "of the test tasks")
    steps: Positive = _field(100, "inner steps")
    dtype: DtypeName = _field("float32", "of optimizees and rules")
    task: TaskConfig = _field(TaskConfig(), "what is evaluated on")
    baselines: list[Text] = _field([], "hand-made optimizers; NAME@STEP is tuned for that step")
    tuning: TuningConfig = _required("of the hand-made optimizers")
    bootstrap: Positive = _field(2000, "resamplings behind the intervals")

    @model_validator(mode="after")
    def _baselines(self) -> EvalConfig:
        for name in self.baselines:
            base, _ = parse_baseline(name)
            if HYPERPARAMETERS[base] and base not in self.tuning.grids:
                raise ValueError(f"tuning.grids has no entry for {base}, which baselines asks for")
            if self.task.is_own and base in _KNOWING:
                raise ValueError(f"baselines: {ONLY_THE_LOSS} others than {base}")
        if self.task.more is not None:
            raise ValueError("task.more: is for meta-training; an evaluation has task.options")
        return self
