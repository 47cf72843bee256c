"""A control for moving along the orbit: the teleporter's element only preconditions the update.

    w_{t+1} = g_t^-1 . (g_t . w_t + f_t),   (g_t, h2) = m2(grad L(w_t), h2; phi2)
                                            (f_t, h1) = m1(grad L(g_t . w_t), h1; phi1)

Teleport, step, teleport back. With linear layers and gradient descent inside, this is

    W1 <- W1 - eta (g^T g)^-1 grad_{W1} L,   W2 <- W2 - eta grad_{W2} L g^T g

a step in another metric. What the same m2 gains beyond this, when its teleports stay, it gains by
where they lead.

The gradient at g_t . w_t is an evaluation of its own, so a step takes two. Under first order it is
a constant for the meta-gradient like any other (see ``unroll``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.rules.base import Rule
from metaopt.rules.composed import MetaOptimizer, States, Step
from metaopt.tasks.base import Observation, Problem, cut, observed_loss
from metaopt.teleport.base import log_ratio
from metaopt.teleport.engine import TeleportEngine, TeleportReport

Look = Callable[[Problem, Weights], Observation]
"""(problem, w) -> the observation at w: one gradient evaluation."""


def as_constant(problem: Problem, weights: Weights) -> Observation:
    """The observation at w as a constant of the meta-gradient (first order)."""
    with torch.no_grad():
        return problem.observe(cut(weights))


def differentiated(problem: Problem, weights: Weights) -> Observation:
    """The observation at w, through which meta-gradients flow (second order)."""
    return problem.observe(weights)


class PreconditionedOptimizer(MetaOptimizer):
    """Teleport, update, teleport back: w_{t+1} = g_t^-1 . (g_t . w_t + f_t).

    A refused teleport leaves a plain update. One whose way back is refused, or would have to be
    shrunk, leaves the weights at w_t: they must not stay on another point of the orbit.

    Args:
        rules: ``update``, which sees g_t . w_t, and ``teleport``, which sees w_t.
        engine: carries the generators out, there and back.
        look: ``as_constant`` or ``differentiated``.
    """

    gradients_per_step = 2.0

    def __init__(self, rules: Mapping[str, Rule], engine: TeleportEngine, look: Look) -> None:
        super().__init__(rules, engine)
        self._there_and_back = engine
        self.look = look

    def step(  # type: ignore[override]  # a stepper, which adjusts, refuses two gradients a step
        self, weights: Weights, observation: Observation, state: States, problem: Problem
    ) -> Step[States]:
        """One inner step on a problem, which can be observed a second time."""
        engine, new = self._there_and_back, dict(state)
        element, new["teleport"] = self.rules["teleport"].propose(observation, state["teleport"])
        assert element.generators is not None
        moved, there = engine.teleport(weights, element.generators, problem)

        seen = self.look(problem, moved)
        update, new["update"] = self.rules["update"].propose(seen, state["update"])
        assert update.updates is not None
        stepped = tuple(W + f for W, f in zip(moved, update.updates, strict=True))

        limited = engine.limited(element.generators)
        applied = tuple(T * there.scale[:, None, None] for T in limited)
        returned, back = engine.teleport_back(stepped, applied, problem)
        stranded = ~there.refused & (back.refused | (back.scale < 1))
        after = _where(stranded, weights, _where(there.refused, stepped, returned))
        report = _both(there, back, stranded, _log_ratio(seen, observation))
        return Step(after, new, report)


def _where(condition: Tensor, chosen: Weights, otherwise: Weights) -> Weights:
    """The weights of either, by a bool [B]."""
    rows = condition[:, None, None]
    return tuple(torch.where(rows, W, V) for W, V in zip(chosen, otherwise, strict=True))


def _log_ratio(after: Observation, before: Observation) -> Tensor:
    """log L(g.w) / L(w), [B], without a graph."""
    return log_ratio(observed_loss(before).detach(), observed_loss(after).detach())


def _both(
    there: TeleportReport, back: TeleportReport, stranded: Tensor, earlier: Tensor
) -> TeleportReport:
    """One report of a teleport there and one back; the drift is the sum of the two."""
    refused = there.refused | stranded
    return replace(
        there,
        drift=torch.where(refused, 0.0, there.drift + back.drift),
        refused=refused,
        outputs_before=back.outputs_before,
        earlier_log_ratio=earlier,
        # The weights may be those of either teleport, or of none.
        passes=None,
    )
