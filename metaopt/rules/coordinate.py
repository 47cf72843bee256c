"""Coordinate-wise rules: one small LSTM shared by all weights, one by all entries of a generator.

    (f_ij, h_ij) = m1(features of weight (i, j), h_ij)
    (T_ij, h_ij) = m2(features of entry (i, j), h_ij)

The features are in ``features``. Whatever the width, the parameters are the same; relabel the
hidden units by P, and f and T come out relabelled (P f, f P^T, P T P^T).

References:
    Andrychowicz et al., Learning to learn by gradient descent by gradient descent (2016), for m1.
"""

from __future__ import annotations

from torch import Tensor

from metaopt.rules.base import Proposal, Rule
from metaopt.rules.features import (
    GENERATOR_FEATURES,
    UPDATE_FEATURES,
    generator_features,
    generator_sizes,
    split_generators,
    split_weights,
    update_features,
)
from metaopt.rules.lstm import LSTM, Head, State
from metaopt.rules.step_size import StepSizeBound
from metaopt.tasks import Observation

HEAD_BOUND = 0.01
"""Heads start small: the untrained rule hardly moves, and hardly teleports."""


class CoordinateRule(Rule):
    """LSTM and head shared by all coordinates.

    Args:
        features: features of a coordinate.
        hidden: size of the cells.
        scale: factor on the outputs of the head.
        seed: of the initialisation.
        name: of the initialisation's stream.
    """

    batch_axis = 1

    def __init__(self, features: int, hidden: int, scale: float, seed: int, name: str) -> None:
        super().__init__()
        self.scale = scale
        self.lstm = LSTM(features, hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, 1, seed, f"{name}/head", bound=HEAD_BOUND)

    def outputs(self, h: Tensor, batch: int) -> Tensor:
        """The head's outputs, [B, coordinates], of the hidden states [hidden, B * coordinates]."""
        return self.scale * self.head(h).view(batch, -1)


class CoordinateUpdateLSTM(CoordinateRule):
    """m1: features of a weight -> its update."""

    def __init__(self, hidden: int, scale: float, seed: int, name: str) -> None:
        super().__init__(UPDATE_FEATURES, hidden, scale, seed, name)

    def initial_state(self, observation: Observation) -> State:
        """Zeros for every weight of every trajectory."""
        return self.lstm.initial_state(sum(W.numel() for W in observation.weights))

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f."""
        h, state = self.lstm(update_features(observation), state)
        rows = self.outputs(h, observation.weights[0].shape[0])
        return Proposal(updates=split_weights(rows, observation)), state


class CoordinateGroupElementLSTM(CoordinateRule):
    """m2: features of an entry of a generator -> that entry."""

    def __init__(self, hidden: int, scale: float, seed: int, name: str) -> None:
        super().__init__(GENERATOR_FEATURES, hidden, scale, seed, name)

    def initial_state(self, observation: Observation) -> State:
        """Zeros for every entry of every generator of every trajectory."""
        batch = observation.weights[0].shape[0]
        return self.lstm.initial_state(batch * sum(k * k for k in generator_sizes(observation)))

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Generators T."""
        h, state = self.lstm(generator_features(observation), state)
        rows = self.outputs(h, observation.weights[0].shape[0])
        return Proposal(generators=split_generators(rows, observation)), state


class CoordinateStepSizeGroupElementLSTM(CoordinateGroupElementLSTM):
    """Generators entry by entry, and one step size of gradient descent from the pooled states.

    Args:
        bound: keeps the step size in its interval.
    """

    def __init__(
        self, hidden: int, scale: float, seed: int, name: str, bound: StepSizeBound
    ) -> None:
        super().__init__(hidden, scale, seed, name)
        self.bound = bound
        self.step_head = Head(hidden, 1, seed, f"{name}/step", bound=HEAD_BOUND)

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """f = -eta grad L(w), and generators T."""
        batch = observation.weights[0].shape[0]
        h, state = self.lstm(generator_features(observation), state)
        pooled = h.view(h.shape[0], batch, -1).mean(2)
        eta = self.bound(self.step_head(pooled)[0])[:, None, None]
        updates = tuple(-eta * G for G in observation.grads)
        return Proposal(updates, split_generators(self.outputs(h, batch), observation)), state
