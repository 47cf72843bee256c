"""Hand-made optimizers with the classical teleport: gradient ascent on the group, no learning.

    w' = w + f(w),   then   w' -> exp(T) . w',   T the sum of p steps c D / ||D||_F,
    D = d/dT ||grad L(exp(T) . w')||_F^2

It is the rule of Zhao, Dehmamy, Walters and Yu, *Symmetry Teleportation for Accelerated
Optimization* (NeurIPS 2022, arXiv 2205.10637), which maximises the gradient norm on the orbit by
gradient ascent; c is the length of an ascent step. The search is the one of ``metaopt.teleport``
(``teleport.search``), on all tasks side by side.
"""

from __future__ import annotations

from metaopt.base.network import Weights
from metaopt.rules.composed import MetaOptimizer, Optimizer, States, Step
from metaopt.tasks.base import Observation, Problem, Tasks
from metaopt.teleport.engine import TeleportEngine, TeleportReport, known_network
from metaopt.teleport.search import FixedLength
from metaopt.teleport.search_on_tasks import steepest_generators

GRADIENTS_PER_ASCENT = 3.0
"""The gradient at w' and, through it backwards, D: twice as much again."""

Taken = tuple[int, States]
"""How many steps were taken, and the states of the rules."""


class GradientTeleport(Optimizer[Taken]):
    """An update rule, with a teleport up the gradient norm after every so many steps.

    Each ascent step is counted as three gradient evaluations: reverse mode over a function costs
    about twice the function (Griewank and Walther 2008, section 4.6), here over grad L itself. The
    evaluation at the teleported weights is that of the next step. What the rule remembers goes
    through teleports as that of a rule with a learned teleporter does.

    Args:
        updated: the update rule, as an optimizer without teleports.
        length: c.
        ascents: p, ascent steps of a teleport.
        every: inner steps from one teleport to the next; the first follows the first step.
        engine: carries the generators out; its limit lets norms up to p c through.
    """

    def __init__(
        self,
        updated: MetaOptimizer,
        length: float,
        ascents: int,
        every: int,
        engine: TeleportEngine,
    ) -> None:
        self.updated = updated
        self.length = length
        self.ascents = ascents
        self.every = every
        self.engine = engine
        self.gradients_per_step = 1 + GRADIENTS_PER_ASCENT * ascents / every

    def initial_state(self, tasks: Tasks, observation: Observation) -> Taken:
        """No step taken; raises ``InexactActionError`` where teleports cannot work."""
        self.engine.check(tasks, observation.weights)
        return 0, self.updated.initial_state(tasks, observation)

    def step(
        self, weights: Weights, observation: Observation, state: Taken, problem: Problem
    ) -> Step[Taken]:
        """Update first, teleport after it."""
        taken, own = state
        updated = self.updated.step(weights, observation, own, problem)
        if taken % self.every:
            report = TeleportReport.none(updated.weights, known_network(problem))
            return Step(updated.weights, (taken + 1, updated.state), report)
        how = FixedLength(self.length)
        found = steepest_generators(problem, updated.weights, self.engine, self.ascents, how)
        moved, report = self.engine.teleport(updated.weights, found, problem)
        rules = self.updated.rules.items()
        states = {name: report.moved(rule, updated.state[name]) for name, rule in rules}
        return Step(moved, (taken + 1, states), report)
