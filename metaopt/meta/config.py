"""The section ``meta`` of a run's configuration: the outer loop and its levers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from metaopt.base.fields import (
    Decay,
    DtypeName,
    Model,
    Name,
    Positive,
    PositiveFloat,
    ProductsName,
    Seed,
    Text,
    described,
    required,
)
from metaopt.base.fields import Model as _Model
from metaopt.base.fields import described as _field
from metaopt.base.fields import required as _required
from metaopt.rules.config import (
    AdamConfig,
    CoordinateConfig,
    InformedConfig,
    LayerConfig,
    MomentumConfig,
    RulesConfig,
    TeleporterConfig,
    UnitConfig,
)
from metaopt.tasks.config import ONLY_THE_LOSS
from metaopt.tasks.config import TaskConfig as TaskConfig


class FixedHorizonConfig(Model):
    """Trajectories of ``meta.steps``."""

    kind: Literal["fixed"] = required("all trajectories have `meta.steps` inner steps")


class CurriculumConfig(Model):
    """Trajectories that grow."""

    kind: Literal["curriculum"] = required("they grow to `meta.steps`, in whole windows")
    first: Positive = described(10, "inner steps of the first trajectories, if below `meta.steps`")
    share: Annotated[float, Field(gt=0, le=1)] = described(
        0.5, "part of the outer steps over which they grow"
    )


class RandomHorizonConfig(Model):
    """Trajectories of random length."""

    kind: Literal["random"] = required("log-uniform up to `meta.steps`, in whole windows")
    low: Positive = described(10, "fewest inner steps, if below `meta.steps`")


HorizonConfig = Annotated[
    FixedHorizonConfig | CurriculumConfig | RandomHorizonConfig, Field(discriminator="kind")
]


class GradientConfig(Model):
    """Backpropagation through a window."""

    kind: Literal["gradient"] = required("of one window, by backpropagation")


class PersistentESConfig(Model):
    """Persistent evolution strategies."""

    kind: Literal["pes"] = required("persistent evolution strategies, unbiased by truncation")
    sigma: PositiveFloat = described(0.01, "standard deviation of the perturbations of phi")
    pairs: Positive = described(1, "antithetic pairs; a window is run twice for each")


EstimatorConfig = Annotated[GradientConfig | PersistentESConfig, Field(discriminator="kind")]


Share = Annotated[float, Field(ge=0, le=1)]


class HideConfig(Model):
    """What rules learn to do without."""

    loss: Share = described(0.0, "share of the meta-batches in which rules are not told the loss")
    inputs: Share = described(
        0.0, "share of the meta-batches in which rules are not shown the inputs of layers"
    )


class MetaConfig(Model):
    """The outer loop."""

    batch: Positive = described(64, "B, trajectories side by side")
    outer_steps: Positive = described(1000, "updates of phi")
    steps: Positive = described(100, "inner steps of a trajectory")
    unroll: Positive = described(
        10, "K, inner steps of a truncation window (the last one may be shorter)"
    )
    horizon: HorizonConfig = described(
        FixedHorizonConfig(kind="fixed"), "length of the trajectories of meta-training"
    )
    truncation: Literal["even", "random"] = described(
        "even", "windows of K steps, or in pairs of K + d and K - d, d uniform up to K/2"
    )
    estimator: EstimatorConfig = described(GradientConfig(kind="gradient"), "of the meta-gradient")
    order: Annotated[int, Field(ge=1, le=2)] = described(
        1, "1: features are constants; 2: differentiated too"
    )
    loss: Literal["log", "log_last", "normalised", "sum"] = described(
        "log",
        "over a window: mean of log(loss + epsilon), that of the last step alone, mean of losses "
        "as shares of the loss at its start, or the paper's sum",
    )
    objective: Literal["observed", "judged"] = described(
        "observed",
        "whose losses: those that rules observe, or those that validation reports (of a family of "
        "your own, on all of its `test`)",
    )
    hide: HideConfig = described(HideConfig(), "what rules learn to do without")
    epsilon: PositiveFloat = described(1e-9, "added to losses, except in the sum")
    schedule: Literal["cosine", "constant"] = described("cosine", "of the outer learning rates")
    final_lr: Annotated[float, Field(gt=0, le=1)] = described(
        0.02, "where the cosine ends, as a share of its start"
    )
    warm_up: Annotated[int, Field(ge=0)] = described(
        0, "outer steps over which the outer learning rates rise linearly; 0 for none"
    )
    clip: PositiveFloat | None = described(
        1.0, "largest norm of each network's meta-gradient; null for none"
    )
    rescale: Annotated[float, Field(ge=0, le=10)] = described(
        0.0,
        "training tasks: X, Y and each initial weight times factors whose logarithms are uniform "
        "within plus and minus this; 0 for none",
    )
    average: Decay | None = described(
        None, "decay of the average of phi that is validated and written; null for phi itself"
    )


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
            raise ValueError("name: runs/eval is where metaopt eval writes, found 'eval'")
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
