"""Optimizers: what advances the weights by one inner step.

    w_{t+1} = g_t . (w_t + f_t),   (f_t, g_t) from rules that see one gradient evaluation at w_t

``MetaOptimizer`` composes rules, learned or hand-made, with a teleport engine. What is more than a
rule (``lbfgs``, ``gradient_teleport``, ``references``) stands behind the same ``Optimizer``
interface.
All are indexed by gradient evaluations: w_t needed t gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from metaopt.base.network import Weights
from metaopt.rules.base import Proposal, Rule, State
from metaopt.symmetry.actions import InexactActionError
from metaopt.tasks.base import Observation, Tasks
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.engine import TeleportData, TeleportEngine, TeleportReport
from metaopt.teleport.unit_engine import UnitEngine, UnitReport


@dataclass(frozen=True)
class Step:
    """One inner step taken.

    Attributes:
        weights: w_{t+1}.
        state: the optimizer's, after the step.
        report: of the teleport, or None without one.
    """

    weights: Weights
    state: Any
    report: TeleportReport | UnitReport | None = None


class Optimizer(ABC):
    """Explicit state, no side effects on the weights that it is given."""

    gradients_per_step: float = 1.0

    @abstractmethod
    def initial_state(self, tasks: Tasks, observation: Observation) -> Any:
        """The state before the first step from ``observation.weights``."""

    @abstractmethod
    def step(
        self, weights: Weights, observation: Observation, state: Any, data: TeleportData
    ) -> Step:
        """One inner step.

        Args:
            weights: w_t, each [B, out, in], with the graph that meta-gradients flow through.
            observation: one gradient evaluation at w_t; constants under first order.
            state: from ``initial_state`` or the step before.
            data: what teleports are carried through.
        """


def with_known_network(tasks: Tasks) -> TaskBatch:
    """The tasks, for what needs their network and targets beside gradients.

    Raises:
        InexactActionError: where they are of a family that keeps both to itself.
    """
    if not isinstance(tasks, TaskBatch):
        raise InexactActionError(
            "teleports through the data and references need to know the network of the tasks, as "
            "that of leaky_relu_regression; of a family of your own only the loss is known, and "
            "hidden units may be scaled (rules.teleport of kind unit_lstm)"
        )
    return tasks


class MetaOptimizer(nn.Module, Optimizer):
    """Update rule + teleporter: w_{t+1} = g_t . (w_t + f_t).

    Args:
        rules: by name; exactly one proposes updates, and at most one (the same or another one)
            generators.
        engine: carries the generators out; None where no rule proposes any.
    """

    def __init__(
        self, rules: Mapping[str, Rule], engine: TeleportEngine | UnitEngine | None
    ) -> None:
        super().__init__()
        # A plain module as container: ModuleDict takes no key called "update".
        self.networks = nn.Module()
        for name, rule in rules.items():
            self.networks.add_module(name, rule)
        self.rules = dict(rules)
        self.engine = engine

    def initial_state(self, tasks: Tasks, observation: Observation) -> State:
        """The states of all rules, keyed ``rule.tensor``."""
        if self.engine is not None:
            known: Any = with_known_network(tasks) if self.engine.needs_network else tasks
            self.engine.check(known, observation.weights)
        return self.initial_rule_states(observation)

    def initial_rule_states(self, observation: Observation) -> State:
        """The states of all rules, for weights that need not belong to a task of ours."""
        return {
            f"{name}.{key}": value
            for name, rule in self.rules.items()
            for key, value in rule.initial_state(observation).items()
        }

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """What all rules together propose, and their new states."""
        found = Proposal()
        new_state: State = {}
        for name in self.rules:
            proposal, own = self.propose_alone(name, observation, state)
            new_state |= own
            found = found.joined(proposal)
        return found, new_state

    def propose_alone(
        self, name: str, observation: Observation, state: State
    ) -> tuple[Proposal, State]:
        """What one rule proposes, and its part of the new state."""
        proposal, own = self.rules[name].propose(observation, _part(name, state))
        return proposal, _named(name, own)

    def step(
        self, weights: Weights, observation: Observation, state: State, data: TeleportData
    ) -> Step:
        """Update first, teleport after it."""
        proposal, state = self.propose(observation, state)
        return self.carry_out(weights, proposal, state, data)

    def carry_out(self, weights: Weights, proposal: Proposal, state: State, data: Any) -> Step:
        """What a proposal makes of the weights and of the rules' states.

        Args:
            weights: w_t.
            proposal: of all rules.
            state: theirs, after proposing.
            data: what the engine needs, ``TeleportData`` or ``UnitData``.
        """
        report: TeleportReport | UnitReport | None = None
        if proposal.updates is not None:
            weights = tuple(W + f for W, f in zip(weights, proposal.updates, strict=True))
        if proposal.generators is not None and self.engine is not None:
            weights, report = self.engine.teleport(weights, proposal.generators, data)
        if isinstance(report, UnitReport):
            for name, rule in self.rules.items():
                scaled = rule.scaled(_part(name, state), report.t, report.log_factors)
                state = state | _named(name, scaled)
        return Step(weights, state, report)


def _part(name: str, state: State) -> State:
    """The part of a rule in the state of all."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def _named(name: str, own: State) -> State:
    """The state of a rule as part of that of all."""
    return {f"{name}.{key}": value for key, value in own.items()}
