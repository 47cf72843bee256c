"""What the configuration of every rule offers: its fields, and the rule that it describes.

A rule and its configuration stand in one file, and in one row of a table (``rules.config``).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from metaopt.base.config import ConfigError
from metaopt.base.fields import Model, PositiveFloat, Size, described, required
from metaopt.rules.base import Rule
from metaopt.tasks.config import TaskConfig
from metaopt.teleport.base import Need
from metaopt.teleport.config import TeleporterConfig


@dataclass(frozen=True)
class Place:
    """Where a rule stands.

    Attributes:
        name: ``update``, ``teleport`` or ``step_teleport``, its field in the section ``rules``;
            also names the random stream of its initialisation.
        task: what it is trained on; fixes the shapes of flattened rules.
        seed: the seed of the initialisation.
    """

    name: str
    task: TaskConfig
    seed: int


class RuleConfig(Model):
    """A section that describes a rule.

    Attributes:
        knows_loss_alone: whether the rule works on a family of which only the loss is known.
        needs_inputs: whether it can propose nothing without the inputs of layers.
        generates_for: what the engine of its generators has to know; None for updates alone.
        generates_similarities: whether its elements are rotations times a number.
        learns_decay: whether its updates hold a weight decay that it has learned.
        follows_pairs: whether all that it keeps can move with linear pairs.
        follows_similarities: whether it can where their elements are rotations times a number.
    """

    knows_loss_alone: ClassVar[bool] = False
    needs_inputs: ClassVar[bool] = False
    generates_for: ClassVar[Need | None] = None
    generates_similarities: ClassVar[bool] = False
    learns_decay: ClassVar[bool] = False
    follows_pairs: ClassVar[bool] = False
    follows_similarities: ClassVar[bool] = False
    kind: str = required("which rule it is")

    @abstractmethod
    def make(self, place: Place) -> Rule:
        """The rule, freshly initialised."""

    @property
    def learns(self) -> bool:
        """Whether meta-training changes it."""
        return False

    @property
    def decay(self) -> str:
        """Which weight decay its updates hold of their own, for people; empty if none."""
        return "learned" if self.learns_decay else ""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the outer loop; ``ConfigError`` for rules without parameters."""
        raise ConfigError(f"kind {type(self).__name__} has no parameters to learn")

    def require(self, teleporter: TeleporterConfig) -> None:
        """Raise ``ConfigError`` if the teleporter cannot carry out the generators of the rule."""


class LearnedConfig(RuleConfig):
    """The fields of every rule with parameters."""

    outer_lr: PositiveFloat = described(3e-3, "learning rate of this rule in the outer loop")
    frozen: bool = described(False, "a control: the rule stays as it was initialised")

    @property
    def learns(self) -> bool:
        """Whether meta-training changes it: unless it is frozen."""
        return not self.frozen

    @property
    def learning_rate(self) -> float:
        """The learning rate of the outer loop."""
        return self.outer_lr


class NetworkConfig(LearnedConfig):
    """The fields of every rule that is an LSTM."""

    hidden: Size = described(20, "numbers of hidden state in each of the two LSTM cells")
    scale: PositiveFloat = described(1.0, "factor on the outputs of the network")


class FreeConfig(NetworkConfig):
    """The fields of learned rules whose outputs are coefficients of known directions."""

    free: PositiveFloat = described(
        1.0, "factor on how far outputs may move weights where no known direction says how"
    )


class TurnsConfig(NetworkConfig):
    """The fields of learned rules that serve the two sides of linear pairs in turn."""

    every: Annotated[int, Field(ge=1)] = described(
        1, "inner steps of a turn: linear pairs are teleported at the first of them alone"
    )


Fading = Annotated[int, Field(ge=1)] | None
"""Steps after which what is learned counts half; None: it never fades."""


class FadingConfig(NetworkConfig):
    """The fields of learned rules whose later steps may be those of the untrained rule."""

    fades: Fading = described(
        None,
        "inner steps after which what is learned counts half, and less from there on: for "
        "mini-batches, whose noise makes meta-gradients of short windows greedy; null: never",
    )
