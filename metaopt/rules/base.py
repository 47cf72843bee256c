"""What a rule is: one observation in, a proposal out, with a state of named tensors.

Rules propose; they never touch the weights. A proposal holds additive updates, generators of group
elements, or both. Hand-made rules (``hand_made``) and learned ones share this interface, so that
any update rule can stand beside any teleporter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from metaopt.base.errors import MisfitError
from metaopt.base.network import Weights
from metaopt.tasks.base import NOTHING, Hidden, Observation
from metaopt.teleport.base import State as State
from metaopt.teleport.optimizer_state import Kept


class ShapeMismatchError(MisfitError):
    """A rule was made for other shapes than those it is asked to work on."""


class UnknownInputsError(MisfitError):
    """A rule reads the inputs of layers, and they are not known here."""


@dataclass(frozen=True)
class Proposal:
    """What a rule proposes for one inner step.

    Attributes:
        updates: f_l to be added to W_l, each [B, out, in], or None.
        generators: T_l for each adjacent pair of layers, each [B, k_l, k_l]; or one diagonal t over
            all hidden units, [B, K], where the engine scales units; or None.
        decays: the part of the updates that is a weight decay of the rule's own, shaped like them;
            or None where there is none.
    """

    updates: Weights | None = None
    generators: tuple[Tensor, ...] | None = None
    decays: Weights | None = None

    def joined(self, other: Proposal) -> Proposal:
        """This proposal with all that another one proposes in its place."""
        said = {
            f.name: value for f in fields(other) if (value := getattr(other, f.name)) is not None
        }
        return replace(self, **said)


class Rule(nn.Module, ABC):
    """(observation, state) -> (proposal, state), for B trajectories side by side.

    Attributes:
        batch_axis: the axis of the state's tensors on which the trajectories lie, one after
            another (each with as many rows as any other); tensors without axes are all
            trajectories'. It lets a state be cut and joined over processes.
        added_later: names in its state that states saved by older versions lack; they begin anew.
        needs_inputs: whether it can propose nothing without the inputs of layers.
        columns_are_units: whether its state has a column for each hidden unit.
    """

    batch_axis: ClassVar[int] = 0
    added_later: ClassVar[frozenset[str]] = frozenset()
    needs_inputs: ClassVar[bool] = False
    columns_are_units: ClassVar[bool] = False

    @property
    def reads(self) -> Hidden:
        """What it reads of an observation beside weights and gradient: ``loss``, ``inputs``."""
        return NOTHING

    def kept(self, name: str) -> Kept:
        """What the state's tensor of this name belongs to."""
        return Kept.ALL

    def scaled(self, state: State, t: Tensor, log_factors: Weights) -> State:
        """The state after the weights were multiplied by exp(l): that of gradients at exp(l) w.

        Args:
            state: of this rule.
            t: logarithms of the factors of the hidden units, [B, K].
            log_factors: l of each entry, shaped like the weights.
        """
        degrees = {Kept.GRADIENTS: 1, Kept.SQUARES: 2}
        moving = {n: degrees[kept] for n in state if (kept := self.kept(n)) in degrees}
        if not moving:
            return state
        rows = torch.cat([log.flatten(1) for log in log_factors], dim=1)[:, None]
        return state | {n: state[n] * (-degree * rows).exp() for n, degree in moving.items()}

    @abstractmethod
    def initial_state(self, observation: Observation) -> State:
        """The state before the first step, shaped for ``observation``."""

    @abstractmethod
    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The proposal for the step from ``observation.weights``, and the state after it."""


def flat_gradient(observation: Observation) -> Tensor:
    """All gradients of a task in one row: [B, P]."""
    return torch.cat([G.flatten(1) for G in observation.grads], dim=1)
