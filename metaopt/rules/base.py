"""What a rule is: it reads one observation and its own state, and proposes an inner step.

    (proposal, state') = rule(observation, state)

A rule never changes the weights itself. Its proposal holds additive updates, generators of group
elements, or both, and ``composed.MetaOptimizer`` carries it out. Hand-made rules (``hand_made``)
and learned ones (``learned``) share this interface, so that any update rule can be combined with
any teleporter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from metaopt.base.errors import MisfitError
from metaopt.base.network import Weights
from metaopt.rules.averaging import Averaging
from metaopt.symmetry.maps import GroupElement
from metaopt.tasks.base import NOTHING, Hidden, Observation
from metaopt.teleport.base import Elements, MovesPairs
from metaopt.teleport.base import State as State
from metaopt.teleport.optimizer_state import Kept


class ShapeMismatchError(MisfitError):
    """A rule was made for weights of other shapes than those it is asked to work on."""


class UnknownInputsError(MisfitError):
    """A rule needs the inputs of the layers, and they are not known here."""


@dataclass(frozen=True)
class Proposal:
    """What a rule proposes for one inner step.

    Attributes:
        updates: f_l, added to the weights W_l, each [B, out, in]; None if the rule proposes no
            update.
        generators: T_l for each adjacent pair of layers, each [B, k_l, k_l]; or, for an engine that
            scales hidden units, the one diagonal t of all K hidden units, [B, K]; None if the rule
            proposes no teleport.
        frames: where generators say what frames linear pairs are to be in, those that they are in
            now: for each width g and g^-1, both [B, pairs, k, k].
        elements: in the place of generators, g and g^-1 of linear pairs themselves, likewise.
        decays: the part of the updates that is a weight decay learned by the rule, of the same
            shapes; None if there is no such part.
        averaging: what is kept of averaged iterates, which then move in the place of the weights;
            None if weights are not averaged.
    """

    updates: Weights | None = None
    generators: tuple[Tensor, ...] | None = None
    frames: tuple[GroupElement, ...] | None = None
    elements: Elements | None = None
    decays: Weights | None = None
    averaging: Averaging | None = None

    def joined(self, other: Proposal) -> Proposal:
        """Both proposals in one; a field that ``other`` proposes replaces this proposal's."""
        said = {
            f.name: value for f in fields(other) if (value := getattr(other, f.name)) is not None
        }
        return replace(self, **said)


class Rule(nn.Module, ABC):
    """(observation, state) -> (proposal, state'), for B trajectories side by side.

    Attributes:
        batch_axis: the axis of the state's tensors along which the B trajectories lie, all with
            the same number of rows; a tensor without axes belongs to all trajectories. A state is
            cut and joined along this axis when trajectories are shared among processes.
        added_later: names of tensors that states saved by older versions do not have; they start
            from ``initial_state``.
        needs_inputs: whether the rule cannot work without the inputs of the layers.
        columns_are_units: whether the state's tensors have a column for each hidden unit.
        follows: whether it keeps second moments of linear pairs, which follow their rotations.
    """

    follows: bool = False

    batch_axis: ClassVar[int] = 0
    added_later: ClassVar[frozenset[str]] = frozenset()
    needs_inputs: ClassVar[bool] = False
    columns_are_units: ClassVar[bool] = False

    @property
    def reads(self) -> Hidden:
        """The fields of an observation that it reads besides weights and gradients.

        A set that may hold ``loss`` and ``inputs``; empty by default.
        """
        return NOTHING

    def kept(self, name: str) -> Kept:
        """What the state's tensor of this name belongs to, and so how it moves with a teleport."""
        return Kept.ALL

    def does_without(self, name: str) -> bool:
        """Whether a state goes on without its tensor of this name, or with one that begins anew."""
        return False

    def sides(self, name: str, shape: torch.Size) -> int:
        """The columns that a matrix has in a tensor of the state that is ``Kept.SIDES``.

        Args:
            name: that of the tensor.
            shape: [out, in], that of one matrix of weights.
        """
        return 0

    def evaluated(self, weights: Weights, state: State) -> Weights:
        """x, the weights to be evaluated at, such as the average of those that were stepped to.

        It is ``weights`` itself, the same object, for every rule that does not average. At the
        initial state it is equal to ``weights``, whatever these are.

        Args:
            weights: y, where gradients are taken, each [B, out, in].
            state: after the step that led to y.
        """
        return weights

    def trained(self, averaged: Weights, state: State) -> Weights:
        """y, where gradients are taken: the inverse of ``evaluated``.

        Args:
            averaged: x, each [B, out, in].
            state: as for ``evaluated``.
        """
        return averaged

    def scaled(self, state: State, t: Tensor, log_factors: Weights) -> State:
        """The state after w -> exp(l) w, entry by entry: gradients move by exp(-l).

        Tensors that are linear in gradients (``Kept.GRADIENTS``) are multiplied by exp(-l), those
        that are linear in their squares (``Kept.SQUARES``) by exp(-2 l), differences of weights
        (``Kept.DIFFERENCES``) by exp(l); the others stay.

        Args:
            state: the state before.
            t: the logarithms of the factors of the K hidden units, [B, K].
            log_factors: l, each [B, out, in] like the weights.
        """
        degrees = {Kept.GRADIENTS: 1, Kept.SQUARES: 2, Kept.DIFFERENCES: -1}
        moving = {n: degrees[kept] for n in state if (kept := self.kept(n)) in degrees}
        if not moving:
            return state
        return state | {n: state[n] * _powers(log_factors, -d) for n, d in moving.items()}

    def turned(self, state: State, move: MovesPairs, weights: Weights) -> State:
        """The state after linear pairs have moved: gradients move by the inverse transpose.

        Differences of weights (``Kept.DIFFERENCES``) move as weights do.

        Rules that keep squares of single entries (``Kept.SQUARES``) cannot follow, and are not
        combined with such teleports (``RuleConfig.follows_pairs``).

        Args:
            state: the state before.
            move: how weights, gradients, and products of these, move.
            weights: fix the shapes.
        """
        moves = {
            Kept.GRADIENTS: move.rows_of_gradients,
            Kept.DIFFERENCES: move.rows_of_weights,
        }
        moving = {n: moves[kept] for n in state if (kept := self.kept(n)) in moves}
        return state | {name: rows(state[name], weights) for name, rows in moving.items()}

    @abstractmethod
    def initial_state(self, observation: Observation) -> State:
        """The state before the first step, for weights of the shapes in ``observation``."""

    @abstractmethod
    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The proposal for one inner step, and the state after it.

        Args:
            observation: one gradient evaluation at the weights that the step starts from.
            state: from ``initial_state`` or the step before.
        """


def flat_gradient(observation: Observation) -> Tensor:
    """All gradients of a task in one row: [B, P]."""
    return torch.cat([G.flatten(1) for G in observation.grads], dim=1)


MANY = 2**16
"""Entries from which their exponentials take longer than finding out which are alike."""


def _powers(logs: Weights, degree: int) -> Tensor:
    """exp(degree l) of all entries, [B, 1, P]."""
    if torch.is_grad_enabled() or sum(log.numel() for log in logs) < MANY:
        return (degree * torch.cat([log.flatten(1) for log in logs], dim=1)[:, None]).exp()
    parts = []
    for log in logs:
        # Once where entries share their l.
        own = log
        for dim, stride in enumerate(log.stride()):
            own = own.narrow(dim, 0, 1) if stride == 0 else own
        parts.append((degree * own).exp().expand_as(log).flatten(1))
    return torch.cat(parts, dim=1)[:, None]
