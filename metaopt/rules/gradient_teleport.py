"""Gradient descent with the classical teleport: gradient ascent on the group, no learning.

    w' = w - eta grad L(w),   then p times   w' -> exp(T).w',   T = c D / ||D||_F,
    D = d/dT ||grad L(exp(T).w')||_F^2   at T = 0

It is the rule of Zhao, Dehmamy, Walters and Yu, *Symmetry Teleportation for Accelerated
Optimization* (NeurIPS 2022, arXiv 2205.10637), which maximises the gradient norm on the orbit by
gradient ascent; c is the length of an ascent step.
"""

from __future__ import annotations

import torch

from metaopt.base.network import Weights, forward
from metaopt.rules.composed import Optimizer, Step
from metaopt.tasks.base import KnownNetwork, Observation, Problem, Tasks
from metaopt.teleport.engine import TeleportEngine, TeleportReport, known_network
from metaopt.teleport.guard import drift
from metaopt.teleport.search import ascent_direction

GRADIENTS_PER_ASCENT = 3.0
"""The gradient at w' and, through it backwards, D: twice as much again."""


class GradientTeleport(Optimizer[int]):
    """Gradient descent, with a teleport up the gradient norm after every so many steps.

    Each ascent step is counted as three gradient evaluations: reverse mode over a function costs
    about twice the function (Griewank and Walther 2008, section 4.6), here over grad L itself. The
    evaluation at the teleported weights is that of the next step.

    Args:
        lr: eta.
        ascents: p, ascent steps of a teleport.
        every: inner steps from one teleport to the next; the first follows the first step.
        engine: carries the generators out; its norm limit makes D the T of the equation.
    """

    def __init__(self, lr: float, ascents: int, every: int, engine: TeleportEngine) -> None:
        self.lr = lr
        self.ascents = ascents
        self.every = every
        self.engine = engine
        self.gradients_per_step = 1 + GRADIENTS_PER_ASCENT * ascents / every

    def initial_state(self, tasks: Tasks, observation: Observation) -> int:
        """t = 0; raises ``InexactActionError`` where teleports cannot work."""
        self.engine.check(tasks, observation.weights)
        return 0

    def step(
        self, weights: Weights, observation: Observation, state: int, problem: Problem
    ) -> Step[int]:
        """Update first, teleport after it."""
        weights = tuple(W - self.lr * G for W, G in zip(weights, observation.grads, strict=True))
        data = known_network(problem)
        if state % self.every:
            return Step(weights, state + 1, TeleportReport.none(weights, data))
        moved = weights
        reports = []
        for _ in range(self.ascents):
            direction = ascent_direction(problem, moved, self.engine)
            moved, report = self.engine.teleport(moved, direction, problem)
            reports.append(report)
        return Step(moved, state + 1, _in_turn(reports, moved, data))


def _in_turn(reports: list[TeleportReport], moved: Weights, data: KnownNetwork) -> TeleportReport:
    """One report of teleports that followed each other.

    Its generators are the sums, those of the product of the elements to first order; it is refused
    where every one was.
    """
    every = TeleportReport.stack(reports)
    refused = every.refused.all(0)
    before = reports[0].outputs_before
    moved_by = drift(before, forward(moved, data.X, data.s).outputs, data.target_norm)
    return TeleportReport(
        generators=tuple(
            torch.where(every.refused[..., None, None], 0.0, T).sum(0) for T in every.generators
        ),
        scale=torch.ones_like(moved_by),
        drift=torch.where(refused, 0.0, moved_by),
        refused=refused,
        outputs_before=before,
        earlier_log_ratio=torch.zeros_like(moved_by),
    )
