"""The section ``meta`` of a run's configuration: the outer loop and its levers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from metaopt.base.config import kind_of
from metaopt.base.fields import (
    Decay,
    DtypeName,
    Model,
    Name,
    Positive,
    PositiveFloat,
    PrecisionName,
    Seed,
    Text,
    described,
    required,
)
from metaopt.rules.config import GENERATORS, UPDATES, RulesConfig
from metaopt.rules.rule_config import RuleConfig
from metaopt.tasks.config import ONLY_THE_LOSS, TaskConfig
from metaopt.teleport.base import Need
from metaopt.teleport.config import EXACT, LINEAR_PAIRS, PAIRS, UNITS, TeleporterConfig

ACTIONS = {
    kind_of(kind): {Need.UNITS: UNITS, Need.PAIRS: LINEAR_PAIRS}[kind.generates_for]
    for kind in GENERATORS
    if kind.generates_for in (Need.UNITS, Need.PAIRS)
}
"""The action of generators that are for one action alone, by the kind of their rule."""


class FixedHorizonConfig(Model):
    """Trajectories of ``meta.steps``."""

    kind: Literal["fixed"] = required("all trajectories have `meta.steps` inner steps")


class CurriculumConfig(Model):
    """Trajectories that grow."""

    kind: Literal["curriculum"] = required("they grow to `meta.steps`, in whole windows")
    first: Positive = described(
        10, "number of inner steps of the first trajectories, if that is below `meta.steps`"
    )
    share: Annotated[float, Field(gt=0, le=1)] = described(
        0.5, "share of the outer steps during which trajectories grow"
    )


class RandomHorizonConfig(Model):
    """Trajectories of random length."""

    kind: Literal["random"] = required("log-uniform up to `meta.steps`, in whole windows")
    low: Positive = described(10, "smallest number of inner steps, if that is below `meta.steps`")


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
    pairs: Positive = described(
        1, "number of pairs of opposite perturbations; each pair runs a window twice"
    )


EstimatorConfig = Annotated[GradientConfig | PersistentESConfig, Field(discriminator="kind")]


Share = Annotated[float, Field(ge=0, le=1)]


class HideConfig(Model):
    """What rules learn to do without."""

    loss: Share = described(0.0, "share of the meta-batches in which rules are not told the loss")
    inputs: Share = described(
        0.0, "share of the meta-batches in which rules are not shown the inputs of layers"
    )
    left: Share = described(
        1.0, "share of the meta-batches in which rules are not told how many steps there will be"
    )


class MetaConfig(Model):
    """The outer loop."""

    batch: Positive = described(8, "number of trajectories that are trained side by side (B)")
    group: Positive | None = described(
        None,
        "the most trajectories that go through a window at a time, the others of a process after "
        "them: less memory, the same meta-gradient to rounding; null: all of up to 64, and of more "
        "on a CPU as many as 2 GB hold by estimate",
    )
    compile: Literal["auto", "always", "never"] = described(
        "auto",
        "whether inner steps are compiled, on a CPU and for tasks of this package: equal to "
        "rounding, up to twice as fast, and up to half a minute for each kind of trajectories; "
        "auto: in runs of 30,000 inner steps or more, where there is a C++ compiler",
    )
    outer_steps: Positive = described(
        400, "number of updates of the learned parameters (outer steps)"
    )
    steps: Positive = described(100, "number of inner steps of a whole trajectory")
    unroll: Positive = described(
        10, "number of inner steps that one meta-gradient is taken through (K, a truncation window)"
    )
    horizon: HorizonConfig = described(
        RandomHorizonConfig(kind="random"), "how long trajectories are"
    )
    truncation: Literal["even", "random", "whole"] = described(
        "even",
        "windows of `unroll` steps; in pairs, longer and shorter by a random number up to half; or "
        "one window, the whole trajectory",
    )
    estimator: EstimatorConfig = described(
        GradientConfig(kind="gradient"), "how the meta-gradient is computed"
    )
    order: Annotated[int, Field(ge=1, le=2)] = described(
        2, "1: what rules see counts as constant in the meta-gradient; 2: it is differentiated too"
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
    epsilon: PositiveFloat = described(1e-7, "added to every loss before its logarithm is taken")
    schedule: Literal["cosine", "constant"] = described(
        "cosine", "how the learning rates of the outer loop change"
    )
    final_lr: Annotated[float, Field(gt=0, le=1)] = described(
        0.02, "where the cosine ends, as a share of where it starts"
    )
    warm_up: Annotated[int, Field(ge=0)] = described(
        0, "number of outer steps in which the outer learning rates rise linearly; 0 for none"
    )
    clip: PositiveFloat | None = described(
        1.0,
        "largest norm of the meta-gradient of each network, longer ones are scaled to; null: none",
    )
    rescale: Annotated[float, Field(ge=0, le=10)] = described(
        0.0,
        "training tasks: X, Y and each initial weight times factors whose logarithms are uniform "
        "within plus and minus this; 0 for none",
    )
    average: Decay | None = described(
        0.95,
        "decay of the running average of the learned parameters that is kept as the rule; null "
        "for the parameters themselves",
    )

    @model_validator(mode="after")
    def _group(self) -> MetaConfig:
        if self.group is not None and isinstance(self.estimator, PersistentESConfig):
            raise ValueError(
                "group: estimator pes keeps no graph, and needs no groups: expected null, found "
                f"{self.group}"
            )
        return self


class ValidationConfig(Model):
    """Validation on its own tasks."""

    every: Positive = described(60, "outer steps from one validation to the next")
    tasks: Positive = described(32, "validation tasks")


class TrainConfig(Model):
    """A meta-training run."""

    name: Name = required("name of the run; its results go to the folder runs/<name>")
    label: Text = described("", "name of the optimizer in tables and figures; that of the run")
    seed: Seed = described(0, "of training tasks, of validation tasks and of the initialisation")
    dtype: DtypeName = described("float32", "precision of the trained networks and of the rules")
    precision: PrecisionName = described(
        "full",
        "precision in which the weights of the LSTMs are multiplied: that of dtype; tf32 on CUDA; "
        "or bfloat16",
    )
    task: TaskConfig = described(TaskConfig(), "what is trained on")
    rules: RulesConfig = required("what is learned")
    teleporter: TeleporterConfig | None = described(
        None, "how generators move the weights; its defaults, where a rule proposes generators"
    )
    meta: MetaConfig = described(MetaConfig(), "the outer loop")
    validation: ValidationConfig = described(ValidationConfig(), "validation")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """Where they are missing: the label is the name, the teleporter is that of the rules."""
        if not isinstance(given, Mapping):
            return given
        filled = dict(given)
        if "products" in filled:
            # Its name in files up to version 0.2.
            filled.setdefault("precision", filled.pop("products"))
        if filled.get("label") is None and isinstance(filled.get("name"), str):
            filled["label"] = filled["name"]
        rules = filled.get("rules")
        if filled.get("teleporter") is None and isinstance(rules, Mapping):
            proposing = rules.get("teleport") or rules.get("step_teleport")
            if isinstance(proposing, Mapping):
                # Whatever else a file has there is refused as a field, by its name.
                kind = proposing.get("kind")
                action = ACTIONS.get(kind) if isinstance(kind, str) else None
                filled["teleporter"] = {} if action is None else {"action": action}
        return filled

    @model_validator(mode="after")
    def _teleporter(self) -> TrainConfig:
        if self.name == "eval":
            raise ValueError("name: runs/eval is where metaopt eval writes, found 'eval'")
        if self.teleporter is not None and self.rules.generators() is None:
            raise ValueError(
                "teleporter: there is nothing to carry out, as no rule proposes generators: leave "
                "the section out, or add one, e.g. rules.teleport: {kind: coordinate_lstm}"
            )
        return self

    @model_validator(mode="after")
    def _engine(self) -> TrainConfig:
        rule = self.rules.generators()
        if rule is None or self.teleporter is None:
            return self
        found, kind = self.teleporter.action, kind_of(type(rule))
        wanted = ACTIONS.get(kind)
        if rule.generates_for is not None and wanted != (found if found in EXACT else None):
            expected = wanted or f"one of {', '.join(PAIRS)}"
            raise ValueError(
                f"teleporter.action: rules.teleport of kind {kind} needs {expected}; found {found}"
            )
        update = self.rules.update
        if found == LINEAR_PAIRS and not (update is not None and _follows(type(update), rule)):
            known = [kind_of(one) for one in UPDATES if _follows(one, rule)]
            raise ValueError(
                f"teleporter.action: {found} with rules.teleport of kind {kind} moves entries in a "
                f"way that what rules.update keeps cannot follow: expected rules.update of kind "
                f"{' or '.join(known)}"
            )
        return self

    @model_validator(mode="after")
    def _inputs(self) -> TrainConfig:
        through_data = self.teleporter is not None and self.teleporter.action not in EXACT
        needed = through_data or any(rule.needs_inputs for rule in self.rules.by_name().values())
        if self.meta.hide.inputs > 0 and needed:
            raise ValueError("meta.hide.inputs: these rules need the layers' inputs; leave 0")
        return self

    @model_validator(mode="after")
    def _own_family(self) -> TrainConfig:
        if not self.task.is_own:
            return self
        update, teleport = self.rules.update, self.rules.teleport
        if update is None or not update.knows_loss_alone:
            known = [kind_of(kind) for kind in UPDATES if kind.knows_loss_alone]
            raise ValueError(
                f"rules: {ONLY_THE_LOSS} rules.update of kind {', '.join(known[:-1])} or "
                f"{known[-1]}"
            )
        if teleport is not None and not teleport.knows_loss_alone:
            raise ValueError(
                f"rules: {ONLY_THE_LOSS} rules.teleport of kind {' or '.join(ACTIONS)}"
            )
        if self.meta.rescale > 0:
            raise ValueError("meta.rescale: a family of your own is sampled as it is; leave it 0")
        return self


def _follows(update: type[RuleConfig], teleport: RuleConfig) -> bool:
    """Whether all that an update rule keeps can move with the teleports of linear pairs."""
    return update.follows_pairs or (update.follows_similarities and teleport.generates_similarities)
