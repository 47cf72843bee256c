"""The section ``rules`` of a configuration: what proposes updates and generators.

A new rule is one file, with its configuration, and one row in a table here; a rule of a user's own
needs neither (``rules.own``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag, model_validator

from metaopt.base.config import kind_of
from metaopt.base.fields import Model, described
from metaopt.rules.hand_made import AdamConfig, GradientDescentConfig, MomentumConfig
from metaopt.rules.learned.coordinate import (
    CoordinateGeneratorConfig,
    CoordinateStepConfig,
    CoordinateUpdateConfig,
    InformedConfig,
)
from metaopt.rules.learned.eigen_config import EigenConfig
from metaopt.rules.learned.flattened import (
    FlattenedGeneratorConfig,
    FlattenedStepConfig,
    FlattenedUpdateConfig,
)
from metaopt.rules.learned.layer import LayerConfig
from metaopt.rules.learned.matrix import MatrixConfig
from metaopt.rules.learned.pair import PairConfig
from metaopt.rules.learned.pair_basis import PairBasisConfig
from metaopt.rules.learned.unit import UnitConfig
from metaopt.rules.own import OWN, OwnRuleConfig
from metaopt.rules.random_generators import RandomConfig
from metaopt.rules.rule_config import RuleConfig, TurnsConfig

UPDATES: tuple[type[RuleConfig], ...] = (
    FlattenedUpdateConfig,
    CoordinateUpdateConfig,
    InformedConfig,
    LayerConfig,
    MatrixConfig,
    EigenConfig,
    GradientDescentConfig,
    MomentumConfig,
    AdamConfig,
    OwnRuleConfig,
)
GENERATORS: tuple[type[RuleConfig], ...] = (
    FlattenedGeneratorConfig,
    CoordinateGeneratorConfig,
    UnitConfig,
    PairConfig,
    PairBasisConfig,
    RandomConfig,
    OwnRuleConfig,
)
STEP_TELEPORTS: tuple[type[RuleConfig], ...] = (FlattenedStepConfig, CoordinateStepConfig)


def _kind(given: Any) -> str | None:
    """The tag of a section: its ``kind``, or one for all rules of a user's own."""
    kind = given.get("kind") if isinstance(given, dict) else getattr(given, "kind", None)
    return OWN if isinstance(kind, str) and ":" in kind else kind


def one_of(kinds: tuple[type[RuleConfig], ...]) -> Any:
    """A field that holds one of these sections, by its ``kind``."""
    tagged = tuple(Annotated[kind, Tag(kind_of(kind))] for kind in kinds)
    known = ", ".join(repr(kind_of(kind)) for kind in kinds)
    return Annotated[
        Union[tagged],  # noqa: UP007 (made of a table)
        Discriminator(
            _kind,
            custom_error_type="kind",
            custom_error_message=f"expected a kind that is one of {known}",
        ),
    ]


if TYPE_CHECKING:
    UpdateRule = RuleConfig
    GeneratorRule = RuleConfig
    StepTeleportRule = RuleConfig
else:
    UpdateRule, GeneratorRule = one_of(UPDATES), one_of(GENERATORS)
    StepTeleportRule = one_of(STEP_TELEPORTS)


class RulesConfig(Model):
    """What proposes updates and generators."""

    update: UpdateRule | None = described(None, "the update rule, learned or made by hand")
    teleport: GeneratorRule | None = described(None, "the teleporter, which proposes generators")
    step_teleport: StepTeleportRule | None = described(
        None, "in place of both: one network for the step size of gradient descent and generators"
    )

    @model_validator(mode="after")
    def _one_update(self) -> RulesConfig:
        if (self.update is None) == (self.step_teleport is None):
            raise ValueError("give exactly one of update and step_teleport")
        if self.step_teleport is not None and self.teleport is not None:
            raise ValueError("step_teleport proposes generators itself; leave teleport out")
        if not any(rule.learns for rule in self.by_name().values()):
            raise ValueError(
                "nothing to learn: at least one rule must be an LSTM that is not frozen"
            )
        return self

    @model_validator(mode="after")
    def _moved_by_somebody(self) -> RulesConfig:
        moved = isinstance(self.update, EigenConfig) and self.update.pairs == "moved"
        if moved and self.teleport is None:
            raise ValueError(
                "update.pairs: found moved, without a teleport that moves them: expected framed, "
                "or a teleport of kind pair_basis_lstm"
            )
        return self

    @model_validator(mode="after")
    def _take_turns_together(self) -> RulesConfig:
        if isinstance(self.update, TurnsConfig) and isinstance(self.teleport, TurnsConfig):
            found, wanted = self.update.every, self.teleport.every
            if found != wanted:
                raise ValueError(
                    f"update.every: found {found}, expected {wanted}, that of teleport: an update "
                    f"rule steps mostly on the side that the last teleport served"
                )
        return self

    def by_name(self) -> dict[str, RuleConfig]:
        """The rules that are given, by field name."""
        fields = ("update", "teleport", "step_teleport")
        return {name: rule for name in fields if (rule := getattr(self, name)) is not None}

    def generators(self) -> RuleConfig | None:
        """The one that proposes generators, or None."""
        return self.teleport or self.step_teleport
