"""Flattened rules: one LSTM on the whole gradient of a task as one vector (the paper's design).

    (f, h1)      = m1(grad L(w), h1)        LocalUpdateLSTM
    (T, h2)      = m2(grad L(w), h2)        GroupElementLSTM
    (eta, T, h2) = m2(grad L(w), h2)        StepSizeGroupElementLSTM, f = -eta grad L(w)

Two cells and a linear head; P = number of weights is fixed by the shapes that it was made for.

References:
    Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 6.2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metaopt.rules.base import Proposal, Rule, ShapeMismatchError
from metaopt.rules.features import flat_gradient, split_generators, split_weights
from metaopt.rules.lstm import LSTM, Head, State
from metaopt.rules.step_size import StepSizeBound
from metaopt.tasks import Observation

STEP_HEAD_SCALE = 1e-4
"""Of the step head's first weights: a clamp takes outputs as they are, and step sizes are small."""


def _weights(shapes: Sequence[tuple[int, int]]) -> int:
    """P, the number of weights."""
    return sum(out * fan_in for out, fan_in in shapes)


def _generator_entries(shapes: Sequence[tuple[int, int]]) -> int:
    """K = sum of k_l^2 over the adjacent pairs of layers."""
    return sum(out * out for out, _ in shapes[:-1])


class FlattenedRule(Rule):
    """LSTM and head on the flattened gradient.

    Args:
        shapes: (out, in) of each layer.
        hidden: size of the cells.
        transform: applied to each entry of the gradient.
        scale: factor on updates and generators (a step size is bounded instead).
        seed: of the initialisation.
        name: of the initialisation's stream.
    """

    batch_axis = 1

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        hidden: int,
        transform: Callable[[Tensor], Tensor],
        scale: float,
        seed: int,
        name: str,
    ) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.transform = transform
        self.scale = scale
        self.lstm = LSTM(_weights(shapes), hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, self.head_size(shapes), seed, f"{name}/head")

    @staticmethod
    @abstractmethod
    def head_size(shapes: Sequence[tuple[int, int]]) -> int:
        """Number of outputs for layers of these shapes."""

    def initial_state(self, observation: Observation) -> State:
        """Zeros; raises ``ShapeMismatchError`` unless the rule was made for these shapes."""
        found = tuple((W.shape[1], W.shape[2]) for W in observation.weights)
        if found != self.shapes:
            raise ShapeMismatchError(
                f"this flattened rule was made for layers {self.shapes}, found {found}; "
                f"coordinate-wise rules fit any shapes"
            )
        return self.lstm.initial_state(observation.weights[0].shape[0])

    def emit(self, observation: Observation, state: State) -> tuple[Tensor, State]:
        """The head's outputs before scaling, [B, outputs], and the new state."""
        features = self.transform(flat_gradient(observation)).T.contiguous()
        h, state = self.lstm(features, state)
        return self.head(h).T.contiguous(), state


class LocalUpdateLSTM(FlattenedRule):
    """m1: the flattened gradient -> an update of every weight."""

    @staticmethod
    def head_size(shapes: Sequence[tuple[int, int]]) -> int:
        """One output for each weight."""
        return _weights(shapes)

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f."""
        rows, state = self.emit(observation, state)
        return Proposal(updates=split_weights(self.scale * rows, observation)), state


class GroupElementLSTM(FlattenedRule):
    """m2: the flattened gradient -> a generator for each adjacent pair of layers."""

    @staticmethod
    def head_size(shapes: Sequence[tuple[int, int]]) -> int:
        """One output for each entry of a generator."""
        return _generator_entries(shapes)

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Generators T."""
        rows, state = self.emit(observation, state)
        return Proposal(generators=split_generators(self.scale * rows, observation)), state


class StepSizeGroupElementLSTM(FlattenedRule):
    """The network of LSTM(lr,tele): generators, and the step size of gradient descent.

    Args:
        bound: keeps the step size in its interval, in whose middle it starts.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        hidden: int,
        transform: Callable[[Tensor], Tensor],
        scale: float,
        seed: int,
        name: str,
        bound: StepSizeBound,
    ) -> None:
        super().__init__(shapes, hidden, transform, scale, seed, name)
        self.bound = bound
        # A random start can lie outside a clamp, where there is no gradient, or overflow at once.
        with torch.no_grad():
            self.head.W[-1] *= STEP_HEAD_SCALE
            self.head.b[-1] = bound.start

    @staticmethod
    def head_size(shapes: Sequence[tuple[int, int]]) -> int:
        """One output for each entry of a generator, and one for the step size."""
        return _generator_entries(shapes) + 1

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """f = -eta grad L(w), and generators T."""
        rows, state = self.emit(observation, state)
        eta = self.bound(rows[:, -1])[:, None, None]
        updates = tuple(-eta * G for G in observation.grads)
        return Proposal(updates, split_generators(self.scale * rows[:, :-1], observation)), state
