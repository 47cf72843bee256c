"""Optimizers: they advance the weights by one inner step.

    w_{t+1} = g_t . (w_t + f_t)

The rules propose the update f_t and the generator of g_t from one gradient evaluation at w_t.
``MetaOptimizer`` combines rules, learned or hand-made, with a teleport engine that carries the
generator out. Methods that cannot be written as a rule (``lbfgs``, ``gradient_teleport``,
``references``) implement the same ``Optimizer`` interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from metaopt.base.network import Weights
from metaopt.rules.averaging import AHEAD, Averaging
from metaopt.rules.base import Proposal, Rule, State
from metaopt.tasks.base import Ground, Observation, Problem, Tasks
from metaopt.teleport.base import Engine, Report

S = TypeVar("S")
"""What an optimizer remembers from one step to the next."""


@dataclass(frozen=True)
class Step(Generic[S]):
    """What an optimizer returns for one inner step.

    Attributes:
        weights: w_{t+1}, each [B, out, in].
        state: the optimizer's state after the step.
        report: what the teleport did, or None if there was none.
    """

    weights: Weights
    state: S
    report: Report | None = None


class Optimizer(ABC, Generic[S]):
    """Advances weights by one inner step: (w_t, state) -> (w_{t+1}, state').

    The state is passed in and returned, and the given weights are never changed in place.

    Attributes:
        gradients_per_step: the gradient evaluations that one step costs.
    """

    gradients_per_step: float = 1.0

    @abstractmethod
    def initial_state(self, tasks: Tasks, observation: Observation) -> S:
        """The state before the first step.

        Args:
            tasks: B tasks.
            observation: one gradient evaluation at the weights that the first step starts from.

        Raises:
            MisfitError: if the optimizer does not fit the tasks.
        """

    def evaluated(self, weights: Weights, state: S) -> Weights:
        """Where weights that are trained are to be evaluated: averages, or the weights themselves.

        Args:
            weights: w_t, each [B, out, in].
            state: the state after the step that led to them.
        """
        return weights

    @abstractmethod
    def step(
        self, weights: Weights, observation: Observation, state: S, problem: Problem
    ) -> Step[S]:
        """Take one inner step.

        Args:
            weights: w_t, each [B, out, in], with the graph that meta-gradients flow through.
            observation: one gradient evaluation at w_t; its tensors have no graph under first
                order.
            state: from ``initial_state`` or the step before.
            problem: the data of this step, and what is known of the network.
        """


States = dict[str, State]
"""The states of all rules, by their names."""


def tensors_of(states: States) -> Iterator[tuple[str, str, Tensor]]:
    """All tensors of the states: (name of the rule, name of the tensor, tensor)."""
    for rule, own in states.items():
        for name, tensor in own.items():
            yield rule, name, tensor


Adjusted = Callable[[Weights, Proposal], Proposal]
"""What a caller makes of a proposal at given weights, such as steps of its learning rates."""


def as_proposed(weights: Weights, proposal: Proposal) -> Proposal:
    """The proposal as it is."""
    return proposal


def stepped(
    weights: Weights, updates: Weights, averaging: Averaging | None, states: States
) -> tuple[Weights, States]:
    """The weights after updates, and the states of rules, where averages are kept.

    Args:
        weights: y, each [B, out, in].
        updates: f, of the same shapes.
        averaging: how iterates are averaged; None if they are not.
        states: of all rules, after they proposed.
    """
    if averaging is None:
        return tuple(W + f for W, f in zip(weights, updates, strict=True)), states
    weights, ahead = averaging.step(weights, updates)
    return weights, {
        name: own | {AHEAD: ahead} if AHEAD in own else own for name, own in states.items()
    }


class MetaOptimizer(nn.Module, Optimizer[States]):
    """An update rule with a teleporter: w_{t+1} = g_t . (w_t + f_t).

    Args:
        rules: rules by name. Exactly one proposes updates. At most one, which may be the same,
            proposes generators.
        engine: carries the generators out; None if no rule proposes any.
    """

    def __init__(self, rules: Mapping[str, Rule], engine: Engine | None) -> None:
        super().__init__()
        # A plain module as container: ModuleDict takes no key called "update".
        self.networks = nn.Module()
        for name, rule in rules.items():
            self.networks.add_module(name, rule)
        self.rules = dict(rules)
        self.engine = engine

    @property
    def reads_data(self) -> bool:
        """Whether teleports read the data of the step (``Engine.reads_data``)."""
        return self.engine is not None and self.engine.reads_data

    def initial_state(self, tasks: Tasks, observation: Observation) -> States:
        """The states of all rules; raises ``InexactActionError`` if teleports cannot work here."""
        if self.engine is not None:
            self.engine.check(tasks, observation.weights)
        return self.initial_rule_states(observation)

    def initial_rule_states(self, observation: Observation) -> States:
        """The states of all rules before the first step, without a check of the teleports.

        Args:
            observation: fixes the shapes; its weights may be those of any model.
        """
        return {name: rule.initial_state(observation) for name, rule in self.rules.items()}

    def evaluated(self, weights: Weights, state: States) -> Weights:
        """See ``Optimizer.evaluated``: what the rule of the updates says."""
        for name, rule in self.rules.items():
            weights = rule.evaluated(weights, state[name])
        return weights

    def trained(self, averaged: Weights, state: States) -> Weights:
        """Where gradients are taken: the inverse of ``evaluated``.

        Args:
            averaged: each [B, out, in].
            state: the state after the step that led to them.
        """
        for name, rule in self.rules.items():
            averaged = rule.trained(averaged, state[name])
        return averaged

    def propose(self, observation: Observation, states: States) -> tuple[Proposal, States]:
        """The proposals of all rules in one, and the states of the rules after it."""
        found = Proposal()
        new: States = {}
        for name, rule in self.rules.items():
            proposal, new[name] = rule.propose(observation, states[name])
            found = found.joined(proposal)
        return found, new

    def step(
        self,
        weights: Weights,
        observation: Observation,
        state: States,
        problem: Ground,
        adjusted: Adjusted = as_proposed,
    ) -> Step[States]:
        """See ``Optimizer.step``: the update comes first, the teleport after it.

        Args:
            weights: see ``Optimizer.step``, as for the next three.
            observation: see there.
            state: see there.
            problem: see there; only what is known of the network is read.
            adjusted: what becomes of a proposal at given weights before it is carried out.
        """
        proposal, state = self.propose(observation, state)
        return self.carry_out(weights, adjusted(weights, proposal), state, problem)

    def carry_out(
        self, weights: Weights, proposal: Proposal, states: States, ground: Ground
    ) -> Step[States]:
        """Carry out a proposal: w_{t+1} = g_t . (w_t + f_t); the rules' states move with g_t.

        Args:
            weights: w_t, each [B, out, in].
            proposal: the proposal of all rules.
            states: the states of the rules after proposing.
            ground: what is known of the network that the engine moves.
        """
        if proposal.updates is not None:
            weights, states = stepped(weights, proposal.updates, proposal.averaging, states)
        if proposal.generators is None or self.engine is None:
            return Step(weights, states)
        weights, report = self.engine.teleport(weights, proposal.generators, ground)
        moved = {name: report.moved(rule, states[name]) for name, rule in self.rules.items()}
        return Step(weights, moved, report)
