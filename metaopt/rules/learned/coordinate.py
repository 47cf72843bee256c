"""Coordinate-wise rules: one small LSTM shared by all weights, one by all entries of a generator.

    (f_ij, h_ij) = m1(features of weight (i, j), h_ij)
    (T_ij, h_ij) = m2(features of entry (i, j), h_ij)

The features are in ``features``. Whatever the width, the parameters are the same; relabel the
hidden units by P, and f and T come out relabelled (P f, f P^T, P T P^T).

References:
    Andrychowicz et al., Learning to learn by gradient descent by gradient descent (2016), for m1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from metaopt.base.fields import PositiveFloat, described, required
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.learned.directions import (
    HEAD_BOUND,
    Basis,
    BasisConfig,
    InformedSteps,
)
from metaopt.rules.learned.features import (
    GENERATOR_FEATURES,
    INFORMED_FEATURES,
    SQUARES,
    STEP_SIZE_FEATURES,
    UPDATE_FEATURES,
    Seen,
    generator_features,
    generator_sizes,
    informed_features,
    split_generators,
    split_weights,
    step_size_features,
    update_features,
)
from metaopt.rules.learned.lstm import LSTM, Head
from metaopt.rules.learned.sized import GENERATOR_BASES_OF_COORDINATES, UPDATE_BASES_OF_COORDINATES
from metaopt.rules.learned.step_size import StepSizeBound, StepSizeConfig
from metaopt.rules.rule_config import FreeConfig, Place
from metaopt.tasks.base import Hidden, Observation
from metaopt.teleport.base import Need
from metaopt.teleport.optimizer_state import Kept


class CoordinateRule(Rule):
    """LSTM and head shared by all coordinates; a second head on the features, where they are wired.

    Args:
        features: features of a coordinate.
        basis: what the outputs of the heads are coefficients or sizes of.
        hidden: size of the cells.
        scale: factor on the outputs of the head.
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
    """

    def __init__(
        self, features: int, basis: Basis, hidden: int, scale: float, seed: int, name: str
    ) -> None:
        super().__init__()
        self.basis = basis
        self.scale = scale
        self.lstm = LSTM(features, hidden, seed, f"{name}/lstm")
        self.outputs = basis.shaped, basis.sizes // 2 if basis.wired else basis.sizes
        self.head = Head(hidden, sum(self.outputs), seed, f"{name}/head", bound=HEAD_BOUND)
        if basis.wired:
            self.wire = Head(features, sum(self.outputs), seed, f"{name}/wire", bound=HEAD_BOUND)

    @property
    def reads(self) -> Hidden:
        """The loss and the inputs of layers, where they are known."""
        return frozenset({"loss", "inputs"})

    def combination(self, h: Tensor, x: Tensor, counts: Sequence[int], seen: Seen) -> Tensor:
        """The combination, [B, coordinates], that hidden states and features are read as.

        What is for a whole layer is the mean over its coordinates.

        Args:
            h: [B, hidden, coordinates].
            x: the features, [B, features, coordinates].
            counts: coordinates of each layer (or of each pair's generator).
            seen: the observation.
        """
        of_coordinates, of_entries = (self.scale * self.head(h)).split([*self.outputs], dim=1)
        if self.basis.wired:
            more, linear = (self.scale * self.wire(x)).split([*self.outputs], dim=1)
            of_coordinates = of_coordinates + more
            of_entries = torch.cat([linear, of_entries], dim=1)
        parts = of_coordinates.split([*counts], dim=2)
        of_layers = torch.stack([part.mean(2) for part in parts], dim=2)
        return self.basis.combine(of_layers, of_entries, counts, seen)


class CoordinateUpdateLSTM(CoordinateRule):
    """m1: features of a weight -> its update."""

    added_later = frozenset({SQUARES})
    features = UPDATE_FEATURES
    featurise = staticmethod(update_features)

    def __init__(self, basis: Basis, hidden: int, scale: float, seed: int, name: str) -> None:
        super().__init__(self.features, basis, hidden, scale, seed, name)

    def kept(self, name: str) -> Kept:
        """The cells' states are those of entries; the sum of squares is told to each parameter."""
        return Kept.TENSORS if name == SQUARES else Kept.ENTRIES

    def initial_state(self, observation: Observation) -> State:
        """Zeros for every weight of every trajectory, and one for each parameter, [B, 1, L]."""
        W = observation.weights
        cells = self.lstm.initial_state(W[0].shape[0], sum(w[0].numel() for w in W))
        return cells | {SQUARES: W[0].new_zeros(W[0].shape[0], 1, len(W))}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """One update for each weight."""
        # The state of a parameter that had no gradient, or is new, may lag behind the others: the
        # largest sum is the current one.
        seen = Seen(observation, state[SQUARES].amax(dim=(1, 2)))
        x = self.featurise(seen)
        h, cells = self.lstm(x, state)
        rows = self.combination(h, x, [W[0].numel() for W in observation.weights], seen)
        squares = seen.squares[:, None, None].repeat(1, 1, len(observation.weights))
        return Proposal(updates=split_weights(rows, observation)), cells | {SQUARES: squares}


class InformedUpdateLSTM(CoordinateUpdateLSTM):
    """m1 that is also given what m2 sees (``informed_features``): a control."""

    needs_inputs = True
    features = INFORMED_FEATURES
    featurise = staticmethod(informed_features)


class CoordinateGroupElementLSTM(CoordinateRule):
    """m2: features of an entry of a generator -> that entry."""

    def __init__(self, basis: Basis, hidden: int, scale: float, seed: int, name: str) -> None:
        super().__init__(GENERATOR_FEATURES, basis, hidden, scale, seed, name)

    def initial_state(self, observation: Observation) -> State:
        """Zeros for every entry of every generator of every trajectory."""
        return _generator_state(self.lstm, observation)

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """One generator T for each adjacent pair of layers."""
        seen = Seen(observation)
        x = generator_features(seen)
        h, state = self.lstm(x, state)
        sizes = [k * k for k in generator_sizes(observation)]
        rows = self.combination(h, x, sizes, seen)
        return Proposal(generators=split_generators(rows, observation)), state


class CoordinateStepSizeGroupElementLSTM(CoordinateRule):
    """Generators entry by entry, and one step size of gradient descent from the pooled states.

    Args:
        bound: keeps the step size in its interval.
    """

    def __init__(
        self, basis: Basis, hidden: int, scale: float, seed: int, name: str, bound: StepSizeBound
    ) -> None:
        super().__init__(STEP_SIZE_FEATURES, basis, hidden, scale, seed, name)
        self.bound = bound
        self.step_head = Head(hidden, 1, seed, f"{name}/step", bound=HEAD_BOUND)
        with torch.no_grad():
            self.step_head.b.add_(bound.start)

    def initial_state(self, observation: Observation) -> State:
        """Zeros for every entry of every generator of every trajectory."""
        return _generator_state(self.lstm, observation)

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """f = -eta grad L(w), and generators T."""
        seen = Seen(observation)
        x = step_size_features(seen)
        h, state = self.lstm(x, state)
        sizes = [k * k for k in generator_sizes(observation)]
        rows = self.combination(h, x, sizes, seen)
        eta = self.bound(self.step_head(h.mean(2, keepdim=True))[:, 0, 0], seen)[:, None, None]
        updates = tuple(-eta * G for G in observation.grads)
        return Proposal(updates, split_generators(rows, observation)), state


def _generator_state(lstm: LSTM, observation: Observation) -> State:
    batch = observation.weights[0].shape[0]
    return lstm.initial_state(batch, sum(k * k for k in generator_sizes(observation)))


class CoordinateUpdateConfig(BasisConfig):
    """m1 coordinate by coordinate."""

    knows_loss_alone = True
    kind: Literal["coordinate_lstm"] = required("coordinate-wise rule: one LSTM for all entries")
    outer_lr: PositiveFloat = described(6e-3, "learning rate of this rule in the outer loop")
    free: PositiveFloat = described(
        0.01, "factor on how far outputs may move weights where no known direction says how"
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        basis = UPDATE_BASES_OF_COORDINATES[self.basis](self.free)
        return CoordinateUpdateLSTM(basis, self.hidden, self.scale, place.seed, place.name)


class InformedConfig(FreeConfig):
    """m1 coordinate by coordinate, given what m2 sees: a control."""

    needs_inputs = True
    kind: Literal["informed_lstm"] = required(
        "coordinate-wise update rule on directions that is also given the products which the "
        "teleporter sees, as features and as preconditioners"
    )
    outer_lr: PositiveFloat = described(6e-3, "learning rate of this rule in the outer loop")
    free: PositiveFloat = described(
        0.01, "factor on how far outputs may move weights where no known direction says how"
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        basis = InformedSteps(self.free)
        return InformedUpdateLSTM(basis, self.hidden, self.scale, place.seed, place.name)


class CoordinateGeneratorConfig(BasisConfig):
    """m2 entry by entry."""

    generates_for = Need.NETWORK
    kind: Literal["coordinate_lstm"] = required("coordinate-wise rule: one LSTM for all entries")

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        basis = GENERATOR_BASES_OF_COORDINATES[self.basis](self.free)
        return CoordinateGroupElementLSTM(basis, self.hidden, self.scale, place.seed, place.name)


class CoordinateStepConfig(BasisConfig, StepSizeConfig):
    """The network of LSTM(lr,tele), entry by entry."""

    generates_for = Need.NETWORK
    kind: Literal["coordinate_lstm"] = required("coordinate-wise rule: one LSTM for all entries")

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        basis = GENERATOR_BASES_OF_COORDINATES[self.basis](self.free)
        return CoordinateStepSizeGroupElementLSTM(
            basis, self.hidden, self.scale, place.seed, place.name, self.bound()
        )
