"""The configuration of the layer-wise rule for mini-batches (``eigen``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from metaopt.base.config import ConfigError
from metaopt.base.fields import PositiveFloat, described, required
from metaopt.rules.base import Rule
from metaopt.rules.learned.eigen import EigenUpdateLSTM
from metaopt.rules.learned.eigen_means import Memory
from metaopt.rules.rule_config import FadingConfig, Place
from metaopt.teleport.config import LINEAR_PAIRS, TeleporterConfig


class EigenConfig(FadingConfig):
    """m1 parameter by parameter, on directions in eigenbases, with averaged iterates."""

    knows_loss_alone = True
    learns_decay = True
    follows_similarities = True
    kind: Literal["eigen_lstm"] = required(
        "layer-wise update rule for mini-batches: one LSTM for all parameters, whose outputs mix "
        "directions in the eigenbasis of the gradient's second moments, and average iterates"
    )
    directions: Annotated[list[Literal["adam", "orthogonal", "sign"]], Field(min_length=1)] = (
        described(["adam", "orthogonal"], "what steps are mixed of")
    )
    weight_decay: Annotated[float, Field(ge=0)] = described(
        0.01, "decay of matrices in units of the step, before the network says more or less"
    )
    largest_side: Annotated[int, Field(ge=1)] = described(
        1024, "the longest side of a matrix that has an eigenbasis"
    )
    mean_decays: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)] = (
        described(
            [0.5], "decays of the running means of the gradient; each takes 4 bytes a parameter"
        )
    )

    squares_over: PositiveFloat | None = described(
        None,
        "squares of the gradient are remembered over about this part of the way, 5 for its last "
        "fifth, and for 500 steps at most; null: for 100 steps",
    )
    pairs: Literal["framed", "moved"] = described(
        "framed",
        "what is kept along the k numbers of a linear pair: an eigenbasis of each side's own; or "
        "second moments [k, k] in the basis that teleports of kind pair_basis_lstm move it to",
    )

    def require(self, teleporter: TeleporterConfig) -> None:
        """Raise ``ConfigError`` where what it keeps follows no element."""
        if teleporter.action != LINEAR_PAIRS:
            raise ConfigError(
                f"field teleporter.action: found {teleporter.action}, but what kind eigen_lstm "
                f"keeps follows rotations and multiples of linear pairs alone: expected "
                f"{LINEAR_PAIRS} with rules.teleport of kind pair_basis_lstm"
            )
        if self.pairs != "moved":
            raise ConfigError(
                "field rules.update.pairs: found framed, with rules.teleport, but eigenbases of "
                "its own follow no teleport: expected moved, or no rules.teleport"
            )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return EigenUpdateLSTM(
            self.hidden,
            self.scale,
            self.directions,
            self.fades,
            self.weight_decay,
            self.largest_side,
            sorted(self.mean_decays),
            Memory(self.squares_over),
            self.pairs == "moved",
            place.seed,
            place.name,
        )
