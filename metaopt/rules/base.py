"""What a rule is: one observation in, a proposal out, with a state of named tensors.

Rules propose; they never touch the weights. A proposal holds additive updates, generators of group
elements, or both. Hand-made rules (``optimizers``) and learned ones share this interface, so that
any update rule can stand beside any teleporter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from metaopt.network import Weights
from metaopt.rules.lstm import State
from metaopt.tasks import Observation


class ShapeMismatchError(ValueError):
    """A rule was made for other shapes than those it is asked to work on."""


class UnknownInputsError(ValueError):
    """A rule reads the inputs of layers, and nobody here knows them."""


@dataclass(frozen=True)
class Proposal:
    """What a rule proposes for one inner step.

    Attributes:
        updates: f_l to be added to W_l, each [B, out, in], or None.
        generators: T_l for each adjacent pair of layers, each [B, k_l, k_l], or None.
    """

    updates: Weights | None = None
    generators: tuple[Tensor, ...] | None = None


class Rule(nn.Module, ABC):
    """(observation, state) -> (proposal, state), for B trajectories side by side.

    Attributes:
        batch_axis: the axis of the state's tensors on which the trajectories lie, one after
            another (each with as many rows as any other); tensors without axes are all
            trajectories'. It lets a state be cut and joined over processes.
    """

    batch_axis: ClassVar[int] = 0

    @abstractmethod
    def initial_state(self, observation: Observation) -> State:
        """The state before the first step, shaped for ``observation``."""

    @abstractmethod
    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The proposal for the step from ``observation.weights``, and the state after it."""
