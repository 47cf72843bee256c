"""The one inner loop: meta-training, validation and evaluation all run it. Start reading here.

    w_{t+1} = g_t . (w_t + f_t),   (f_t, h1) = m1(grad L(w_t), h1; phi1),
                                   (g_t, h2) = m2(grad L(w_t), h2; phi2)

This is one *inner step* on the weights w_t of a network. The rule m1 reads the gradient and
proposes an update f_t. The rule m2 reads the same gradient and proposes a group element g_t, which
moves the weights along a symmetry: L(g . w) = L(w). Both are learned; phi1 and phi2 are their
parameters, h1 and h2 their memories. B networks, each with its own task, are trained side by side;
each of these inner loops is called a *trajectory*.

``start`` gives the state before the first step, ``unroll`` takes K steps from a state, and
``rollout`` runs whole trajectories without a graph. An *observation* is all that one gradient
evaluation at w_t yields: the loss, the gradients and the inputs of the layers.

A *truncation window* is K inner steps. Its meta-loss M is a function of the K losses *after* each
of them, such as

    M = sum_{i = t+1 .. t+K} l(L(w_i)).

The outer loop differentiates M with respect to phi = (phi1, phi2) and updates phi. It then cuts the
graph (``InnerState.detach``) and continues from the same weights and states, so that a window of a
steps and then one of b steps follow the same trajectory as one window of a + b steps.

*First order* (the default) treats the observations as constants of the meta-gradient; the weights,
and the action on them, are still differentiated. Hence

    dM/dw_i = l'(L_i) grad L(w_i) + J_i^T dM/dw_{i+1},

where J_i is the derivative of the action at w_i + f_i (the identity without a teleport). The first
term contains the gradient that the rules were given, so it is computed only once. *Second order*
differentiates the observations as well.

Reference: Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.base.stopwatch import UNTIMED, NoWatch
from metaopt.meta.looks import Observe, first_order, judged_at, judging
from metaopt.rules.composed import Optimizer, S, States, Step
from metaopt.rules.learned.affine import one_window
from metaopt.tasks.base import Observation, Tasks, cut
from metaopt.teleport.base import Report, TeleportTrace


@dataclass(frozen=True)
class InnerState(Generic[S]):
    """B trajectories between two inner steps.

    Attributes:
        step: t, the number of inner steps taken so far.
        weights: w_t, each [B, out, in].
        loss: L(w_t), [B].
        observation: the observation at w_t, as the rules see it.
        optimizer: the state of the optimizer, such as the memories h1 and h2.
    """

    step: int
    weights: Weights
    loss: Tensor
    observation: Observation
    optimizer: S

    def detach(self: InnerState[States]) -> InnerState[States]:
        """The same state, cut from the autograd graph; for optimizers made of rules."""
        return InnerState(
            self.step,
            cut(self.weights),
            self.loss.detach(),
            self.observation.detach(),
            {
                rule: {key: value.detach() for key, value in own.items()}
                for rule, own in self.optimizer.items()
            },
        )


@dataclass(frozen=True)
class Advanced(Generic[S]):
    """What one inner step led to.

    Attributes:
        taken: the step of the optimizer.
        loss: L(w_{t+1}), [B].
        observation: at w_{t+1}, with what tasks hide from rules.
    """

    taken: Step[S]
    loss: Tensor
    observation: Observation


def operation_by_operation(
    seen: Tasks,
    following: Tasks,
    optimizer: Optimizer[S],
    state: InnerState[S],
    observe: Observe,
) -> Advanced[S]:
    """Take one inner step as it stands in the code, and look at the weights after it.

    Args:
        seen: the tasks as this step sees them.
        following: the tasks as the next step will see them.
        optimizer: takes the step.
        state: the state before it.
        observe: how the weights are looked at.
    """
    taken = optimizer.step(state.weights, state.observation, state.optimizer, seen)
    evaluated = optimizer.evaluated(taken.weights, taken.state)
    loss, observation = observe(following, taken.weights, taken.report, evaluated)
    return Advanced(taken, loss, observation)


Advance = Callable[[Tasks, Tasks, Optimizer[Any], InnerState[Any], Observe], Advanced[Any]]
"""How ``unroll`` takes one inner step: what ``operation_by_operation`` does, or the same faster."""


@dataclass(frozen=True)
class Unrolled:
    """What an unroll computed.

    Attributes:
        losses: L(w_{t+1}) .. L(w_{t+K}), [K, B]; they carry the graph of the meta-gradient.
        teleports: what the teleports of these steps did, or None if there were none.
    """

    losses: Tensor
    teleports: TeleportTrace | None


def resume(
    tasks: Tasks, step: int, weights: Weights, optimizer_state: S, observe: Observe
) -> InnerState[S]:
    """The inner state at given weights and a given optimizer state; one gradient evaluation.

    Args:
        tasks: B tasks.
        step: t, the number of inner steps taken so far.
        weights: w_t, each [B, out, in].
        optimizer_state: the state of the optimizer after t steps.
        observe: how the weights are looked at.
    """
    seen = tasks.at(step)
    loss, observation = observe(seen, weights)
    return InnerState(step, weights, loss, seen.shown(observation, step), optimizer_state)


def start(tasks: Tasks, optimizer: Optimizer[S], observe: Observe = first_order) -> InnerState[S]:
    """The inner state before the first step, at the tasks' own initial weights.

    Args:
        tasks: B tasks.
        optimizer: the optimizer that will take the steps.
        observe: how the weights are looked at.

    Raises:
        MisfitError: if the optimizer does not fit the tasks.
    """
    bare = resume(tasks, 0, tasks.initial, None, observe)
    own = optimizer.initial_state(tasks, bare.observation)
    return InnerState(0, bare.weights, bare.loss, bare.observation, own)


def unroll(
    tasks: Tasks,
    optimizer: Optimizer[S],
    state: InnerState[S],
    steps: int,
    observe: Observe = first_order,
    watch: NoWatch = UNTIMED,
    advance: Advance = operation_by_operation,
) -> tuple[InnerState[S], Unrolled]:
    """Advance B trajectories by K inner steps.

    Args:
        tasks: B tasks.
        optimizer: takes the steps.
        state: the state at step t, from ``start`` or an earlier ``unroll``.
        steps: K, at least 1.
        observe: how the weights are looked at after each step.
        watch: times the steps; measuring the teleports for the trace is not counted.
        advance: how a step is taken.

    Returns:
        The state at step t + K, still attached to the graph, and the losses and teleports of the K
        steps.
    """
    losses: list[Tensor] = []
    trace = _Trace()
    seen = tasks.at(state.step)
    with one_window(), watch.running():
        for _ in range(steps):
            following = tasks.at(state.step + 1)
            now = advance(seen, following, optimizer, state, observe)
            seen, taken = following, now.taken
            shown = seen.shown(now.observation, state.step + 1)
            state = InnerState(state.step + 1, taken.weights, now.loss, shown, taken.state)
            losses.append(now.loss)
            with watch.aside():
                trace.add(taken.report, seen, now.observation)
        with watch.aside():
            teleports = trace.end(seen)
    return state, Unrolled(torch.stack(losses), teleports)


class _Trace:
    """Collects reports, with the observations after them, and makes a ``TeleportTrace`` of them."""

    def __init__(self) -> None:
        self._reports: list[Report] = []
        self._after: list[Observation] = []
        self._parts: list[TeleportTrace] = []

    def add(self, report: Report | None, tasks: Tasks, observation: Observation) -> None:
        """Add the report of one step, and the observation after it."""
        if report is None:
            return
        self._reports.append(report)
        self._after.append(observation)
        if len(self._reports) == report.together:
            self._make(tasks)

    def end(self, tasks: Tasks) -> TeleportTrace | None:
        """The trace of all steps, or None if there were no teleports."""
        self._make(tasks)
        return TeleportTrace.joined(self._parts) if self._parts else None

    def _make(self, tasks: Tasks) -> None:
        if self._reports:
            kind = type(self._reports[0])
            self._parts.append(kind.traced(self._reports, tasks, self._after))
        self._reports, self._after = [], []


def rollout(
    tasks: Tasks, optimizer: Optimizer[S], steps: int, watch: NoWatch = UNTIMED
) -> tuple[Tensor, TeleportTrace | None]:
    """Run whole trajectories from the tasks' own initial weights, without a graph.

    Args:
        tasks: B tasks.
        optimizer: takes the steps.
        steps: the number of inner steps.
        watch: times the steps, each with its gradient evaluation, and nothing else.

    Returns:
        L(w_0) .. L(w_steps) as the tasks judge it, [steps + 1, B]; and what the teleports did, or
        None if there were none.
    """
    with torch.no_grad():
        state = start(tasks, optimizer, judging(UNTIMED))
        _, unrolled = unroll(tasks, optimizer, state, steps, judging(watch), watch)
        return torch.cat([state.loss[None], unrolled.losses]), unrolled.teleports


def rollout_in_turn(
    parts: Sequence[Tasks], optimizer: Optimizer[S], steps: int, watch: NoWatch = UNTIMED
) -> tuple[Tensor, TeleportTrace | None]:
    """``rollout`` of some tasks, a part of them after the other: memory is that of one part.

    Args:
        parts: the tasks, in order (``Tasks.in_parts``).
        optimizer: takes the steps.
        steps: the number of inner steps.
        watch: times the steps of all parts.
    """
    found = [rollout(part, optimizer, steps, watch) for part in parts]
    traces = [trace for _, trace in found if trace is not None]
    losses = torch.cat([own for own, _ in found], dim=1)
    return losses, TeleportTrace.side_by_side(traces) if traces else None


def last_loss(tasks: Tasks, optimizer: Optimizer[S], steps: int) -> Tensor:
    """L(w_steps) as the tasks judge it, [B]: the last loss of ``rollout``, judged only there.

    Args:
        tasks: B tasks.
        optimizer: takes the steps.
        steps: the number of inner steps.
    """
    with torch.no_grad():
        state = start(tasks, optimizer)
        state, _ = unroll(tasks, optimizer, state, steps)
        evaluated = optimizer.evaluated(state.weights, state.optimizer)
        return judged_at(tasks.at(steps), state.weights, state.loss, evaluated)
