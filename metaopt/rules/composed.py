"""Optimizers: what advances the weights by one inner step.

    w_{t+1} = g_t . (w_t + f_t),   (f_t, g_t) from rules that see one gradient evaluation at w_t

``MetaOptimizer`` composes rules, learned or hand-made, with a teleport engine. What is more than a
rule (``lbfgs``, ``gradient_teleport``, ``references``) stands behind the same ``Optimizer``
interface.
All are indexed by gradient evaluations: w_t needed t gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from metaopt.base.network import Weights
from metaopt.rules.base import Proposal, Rule, State
from metaopt.tasks.base import Ground, Observation, Problem, Tasks
from metaopt.teleport.base import Engine, Report

S = TypeVar("S")
"""What an optimizer remembers from one step to the next."""


@dataclass(frozen=True)
class Step(Generic[S]):
    """What an optimizer returns for one inner step.

    Attributes:
        weights: w_{t+1}.
        state: the optimizer's, after the step.
        report: of the teleport, or None without one.
    """

    weights: Weights
    state: S
    report: Report | None = None


class Optimizer(ABC, Generic[S]):
    """What advances weights by one inner step: (w_t, state) -> (w_{t+1}, state).

    Its state is explicit, and the weights that it is given are never changed in place."""

    gradients_per_step: float = 1.0

    @abstractmethod
    def initial_state(self, tasks: Tasks, observation: Observation) -> S:
        """The state before the first step from ``observation.weights``."""

    @abstractmethod
    def step(
        self, weights: Weights, observation: Observation, state: S, problem: Problem
    ) -> Step[S]:
        """One inner step.

        Args:
            weights: w_t, each [B, out, in], with the graph that meta-gradients flow through.
            observation: one gradient evaluation at w_t; constants under first order.
            state: from ``initial_state`` or the step before.
            problem: that of this step: its data, and what is known of the network.
        """


States = dict[str, State]
"""The states of all rules, by their names."""


def tensors_of(states: States) -> Iterator[tuple[str, str, Tensor]]:
    """Each tensor of all rules with its rule and name."""
    for rule, own in states.items():
        for name, tensor in own.items():
            yield rule, name, tensor


class MetaOptimizer(nn.Module, Optimizer[States]):
    """Update rule + teleporter: w_{t+1} = g_t . (w_t + f_t).

    Args:
        rules: by name; exactly one proposes updates, and at most one (the same or another one)
            generators.
        engine: carries the generators out; None where no rule proposes any.
    """

    def __init__(self, rules: Mapping[str, Rule], engine: Engine | None) -> None:
        super().__init__()
        # A plain module as container: ModuleDict takes no key called "update".
        self.networks = nn.Module()
        for name, rule in rules.items():
            self.networks.add_module(name, rule)
        self.rules = dict(rules)
        self.engine = engine

    def initial_state(self, tasks: Tasks, observation: Observation) -> States:
        """The states of all rules; raises ``InexactActionError`` where teleports cannot work."""
        if self.engine is not None:
            self.engine.check(tasks, observation.weights)
        return self.initial_rule_states(observation)

    def initial_rule_states(self, observation: Observation) -> States:
        """The states of all rules before the first step; any weights will do, a model's too."""
        return {name: rule.initial_state(observation) for name, rule in self.rules.items()}

    def propose(self, observation: Observation, states: States) -> tuple[Proposal, States]:
        """What all rules together propose, and their new states."""
        found = Proposal()
        new: States = {}
        for name, rule in self.rules.items():
            proposal, new[name] = rule.propose(observation, states[name])
            found = found.joined(proposal)
        return found, new

    def step(
        self, weights: Weights, observation: Observation, state: States, problem: Problem
    ) -> Step[States]:
        """Update first, teleport after it."""
        proposal, state = self.propose(observation, state)
        return self.carry_out(weights, proposal, state, problem)

    def carry_out(
        self, weights: Weights, proposal: Proposal, states: States, ground: Ground
    ) -> Step[States]:
        """What a proposal makes of the weights and of the rules' states.

        Args:
            weights: w_t.
            proposal: of all rules.
            states: theirs, after proposing.
            ground: what is known of the network that the engine moves.
        """
        if proposal.updates is not None:
            weights = tuple(W + f for W, f in zip(weights, proposal.updates, strict=True))
        if proposal.generators is None or self.engine is None:
            return Step(weights, states)
        weights, report = self.engine.teleport(weights, proposal.generators, ground)
        moved = {name: report.moved(rule, states[name]) for name, rule in self.rules.items()}
        return Step(weights, moved, report)
