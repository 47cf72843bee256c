"""Flattened rules: one LSTM on the whole gradient of a task as one vector (the paper's design).

    (f, h1)      = m1(grad L(w), h1)        LocalUpdateLSTM
    (T, h2)      = m2(grad L(w), h2)        GroupElementLSTM
    (eta, T, h2) = m2(grad L(w), h2)        StepSizeGroupElementLSTM, f = -eta grad L(w)

Two cells and a linear head; P = number of weights is fixed by the shapes that it was made for.

References:
    Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 6.2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor

from metaopt.base.fields import PositiveFloat, Size, described, required
from metaopt.base.shipped import DEFAULT
from metaopt.rules.base import Proposal, Rule, ShapeMismatchError, State, flat_gradient
from metaopt.rules.learned.directions import GENERATOR_BASES, UPDATE_BASES, Basis, BasisConfig
from metaopt.rules.learned.features import (
    LAYER_FEATURES,
    SQUARES,
    Seen,
    layer_features,
    signed_log,
    split_generators,
    split_weights,
)
from metaopt.rules.learned.lstm import LSTM, Head
from metaopt.rules.learned.sized import SIZED
from metaopt.rules.learned.step_size import StepSizeBound, StepSizeConfig
from metaopt.rules.rule_config import Place
from metaopt.tasks.base import NOTHING, Hidden, Observation
from metaopt.tasks.regression import layer_shapes
from metaopt.teleport.base import Need

START_SCALE = 1e-4
"""Factor on the initial weights of the step size, so that its bias sets where it starts."""


class FlatInput(ABC):
    """What a flattened network is fed.

    Attributes:
        reads_layers: whether the inputs of layers, and the loss, are part of it.
    """

    reads_layers: ClassVar[bool] = False

    @abstractmethod
    def size(self, shapes: Sequence[tuple[int, int]]) -> int:
        """Number of inputs for layers of these shapes."""

    @abstractmethod
    def __call__(self, seen: Seen) -> Tensor:
        """[B, size]."""


class RawGradient(FlatInput):
    """The gradient itself, as in arXiv 2305.13404."""

    def size(self, shapes: Sequence[tuple[int, int]]) -> int:
        """P, the number of weights."""
        return sum(out * fan_in for out, fan_in in shapes)

    def __call__(self, seen: Seen) -> Tensor:
        """The flattened gradient."""
        return flat_gradient(seen.observation)


class SignedLogGradient(RawGradient):
    """sign(g) max(0, 1 + log|g| / p) of each entry (``features.signed_log``)."""

    def __call__(self, seen: Seen) -> Tensor:
        """The flattened gradient on a logarithmic scale."""
        return signed_log(super().__call__(seen))


class StatefulGradient(SignedLogGradient):
    """The gradient on a logarithmic scale, and the features of layers: the state of the run."""

    reads_layers = True

    def size(self, shapes: Sequence[tuple[int, int]]) -> int:
        """P and LAYER_FEATURES of each layer."""
        return super().size(shapes) + LAYER_FEATURES * len(shapes)

    def __call__(self, seen: Seen) -> Tensor:
        """Gradient and features."""
        return torch.cat([super().__call__(seen), layer_features(seen).flatten(1)], dim=1)


class FlattenedRule(Rule):
    """LSTM and head on the flattened gradient.

    The head gives each layer (or pair of layers) one coefficient of every shaped direction of the
    basis, and each entry one of every size.

    Args:
        shapes: (out, in) of each layer.
        hidden: size of the cells.
        gradient: what is fed of the gradient.
        basis: the directions that the head's outputs are coefficients of.
        scale: factor on the outputs (a step size is bounded instead).
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
        others: further outputs of the head.
    """

    batch_axis = 1

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        hidden: int,
        gradient: FlatInput,
        basis: Basis,
        scale: float,
        seed: int,
        name: str,
        others: int = 0,
    ) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.gradient = gradient
        self.basis = basis
        self.scale = scale
        self.entries = self.entries_of(shapes)
        self.outputs = [basis.shaped * len(self.entries), basis.sizes * sum(self.entries), others]
        self.lstm = LSTM(gradient.size(shapes), hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, sum(self.outputs), seed, f"{name}/head", bound=basis.head_bound)

    @staticmethod
    @abstractmethod
    def entries_of(shapes: Sequence[tuple[int, int]]) -> list[int]:
        """Entries of each layer's update, or of each pair's generator."""

    @property
    def reads(self) -> Hidden:
        """Loss and inputs, if the network is fed features of layers or its basis has directions."""
        is_told = self.gradient.reads_layers or self.basis.reads_layers
        return frozenset({"loss", "inputs"}) if is_told else NOTHING

    def initial_state(self, observation: Observation) -> State:
        """Zeros; raises ``ShapeMismatchError`` unless the rule was made for these shapes."""
        found = tuple((W.shape[1], W.shape[2]) for W in observation.weights)
        if found != self.shapes:
            raise ShapeMismatchError(
                f"this flattened rule was made for layers {self.shapes}, found {found}; "
                f"layer-wise rules fit any shapes ({DEFAULT})"
            )
        return self.lstm.initial_state(observation.weights[0].shape[0])

    def emit(self, seen: Seen, state: State) -> tuple[Tensor, Tensor, State]:
        """The combination [B, entries], the other outputs [B, others], and the new state."""
        h, state = self.lstm(self.gradient(seen).T.contiguous(), state)
        of_layers, of_entries, others = self.head(h).T.split(self.outputs, dim=1)
        rows = self.basis.combine(
            self.scale * of_layers.unflatten(1, (self.basis.shaped, len(self.entries))),
            self.scale * of_entries.unflatten(1, (self.basis.sizes, -1)),
            self.entries,
            seen,
        )
        return rows, others, state


class LocalUpdateLSTM(FlattenedRule):
    """m1: the flattened gradient -> an update of every weight."""

    added_later = frozenset({SQUARES})

    @staticmethod
    def entries_of(shapes: Sequence[tuple[int, int]]) -> list[int]:
        """Weights of each layer."""
        return [out * fan_in for out, fan_in in shapes]

    def initial_state(self, observation: Observation) -> State:
        """Zeros, and one for each trajectory, [1, B]; raises as the others do."""
        W = observation.weights[0]
        return super().initial_state(observation) | {SQUARES: W.new_zeros(1, W.shape[0])}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """One update for each weight."""
        seen = Seen(observation, state[SQUARES][0])
        rows, _, cells = self.emit(seen, state)
        squares = {SQUARES: seen.squares[None]}
        return Proposal(updates=split_weights(rows, observation)), cells | squares


class GroupElementLSTM(FlattenedRule):
    """m2: the flattened gradient -> a generator for each adjacent pair of layers."""

    @staticmethod
    def entries_of(shapes: Sequence[tuple[int, int]]) -> list[int]:
        """k_l^2 of each pair."""
        return [out * out for out, _ in shapes[:-1]]

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """One generator T for each adjacent pair of layers."""
        rows, _, state = self.emit(Seen(observation), state)
        return Proposal(generators=split_generators(rows, observation)), state


class StepSizeGroupElementLSTM(GroupElementLSTM):
    """The network of LSTM(lr,tele): generators, and the step size of gradient descent.

    Args:
        bound: keeps the step size in its interval, and says where it starts.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        hidden: int,
        gradient: FlatInput,
        basis: Basis,
        scale: float,
        seed: int,
        name: str,
        bound: StepSizeBound,
    ) -> None:
        super().__init__(shapes, hidden, gradient, basis, scale, seed, name, others=1)
        self.bound = bound
        # A random start can lie outside a clamp, where there is no gradient, or overflow at once.
        with torch.no_grad():
            self.head.W[-1] *= START_SCALE
            self.head.b[-1] = bound.start

    @property
    def reads(self) -> Hidden:
        """Loss and inputs, also if the step size is in units of the largest safe step."""
        return frozenset({"loss", "inputs"}) if self.bound.reads_layers else super().reads

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """f = -eta grad L(w), and generators T."""
        seen = Seen(observation)
        rows, others, state = self.emit(seen, state)
        eta = self.bound(others[:, 0], seen)[:, None, None]
        updates = tuple(-eta * G for G in observation.grads)
        return Proposal(updates, split_generators(rows, observation)), state


FLAT_INPUTS: dict[str, type[FlatInput]] = {
    "raw": RawGradient,
    "signed_log": SignedLogGradient,
    "stateful": StatefulGradient,
}


class FlattenedConfig(BasisConfig):
    """The fields of flattened rules."""

    kind: Literal["lstm"] = required("flattened rule: one LSTM on the whole gradient")
    hidden: Size = described(300, "numbers of hidden state in each of the two LSTM cells")
    outer_lr: PositiveFloat = described(3e-4, "learning rate of this rule in the outer loop")
    gradient: Literal["raw", "signed_log", "stateful"] = described(
        "stateful",
        "what the network is fed: the gradient itself; the gradient on a logarithmic scale; or "
        "that together with features of the state of the run",
    )

    @field_validator("basis")
    @classmethod
    def _is_not_of_entries(cls, basis: str) -> str:
        if basis == SIZED:
            raise ValueError(
                f"found {SIZED}, which reads features of single entries, as kind coordinate_lstm "
                f"does: expected entries or directions"
            )
        return basis

    def given(self, place: Place, bases: Mapping[str, type[Basis]]) -> dict[str, Any]:
        """What every flattened rule is made with, the basis being one of ``bases``."""
        return {
            "shapes": layer_shapes(place.task),
            "hidden": self.hidden,
            "gradient": FLAT_INPUTS[self.gradient](),
            "basis": bases[self.basis](self.free),
            "scale": self.scale,
            "seed": place.seed,
            "name": place.name,
        }


class FlattenedUpdateConfig(FlattenedConfig):
    """m1 on the flattened gradient."""

    free: PositiveFloat = described(
        0.01, "factor on how far outputs may move weights where no known direction says how"
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return LocalUpdateLSTM(**self.given(place, UPDATE_BASES))


class FlattenedGeneratorConfig(FlattenedConfig):
    """m2 on the flattened gradient."""

    generates_for = Need.NETWORK

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return GroupElementLSTM(**self.given(place, GENERATOR_BASES))


class FlattenedStepConfig(FlattenedConfig, StepSizeConfig):
    """The network of LSTM(lr,tele) on the flattened gradient."""

    generates_for = Need.NETWORK
    free: PositiveFloat = described(
        0.1, "factor on how far outputs may move weights where no known direction says how"
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return StepSizeGroupElementLSTM(**self.given(place, GENERATOR_BASES), bound=self.bound())
