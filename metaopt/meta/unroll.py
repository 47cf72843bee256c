"""The one inner loop: meta-training, validation and evaluation all run it. Start reading here.

An inner step takes the weights w_t of B trajectories, the observation at w_t (loss, gradients,
layer inputs: one gradient evaluation) and the optimizer's state, and gives

    w_{t+1} = g_t . (w_t + f_t),   (f_t, h1) = m1(grad L(w_t), h1; phi1),
                                   (g_t, h2) = m2(grad L(w_t), h2; phi2)

with g . w the action of a group element that keeps the loss. A *truncation window* is K such steps.
Its meta-loss is a function of the K losses *after* each of its steps,

    M = sum_{i = t+1 .. t+K} l(L(w_i)).

The outer loop differentiates M with respect to phi = (phi1, phi2), then cuts the graph
(``InnerState.detach``) and goes on from the same weights and states: window a and then window b are
the same trajectory as one of a + b steps.

*First order* (the default): everything that the rules see is a constant for the meta-gradient; w
itself, and the action on it, are not. Hence

    dM/dw_i = l'(L_i) grad L(w_i) + J_i^T dM/dw_{i+1},

J_i the derivative of the action at w_i + f_i (the identity without teleport). The gradient that the
rules are fed is also the first term: it is computed once. *Second order* differentiates through the
observations as well.

Reference: Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 6.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metaopt.base.network import Weights
from metaopt.base.stopwatch import UNTIMED, NoWatch
from metaopt.rules.composed import Optimizer, S, States
from metaopt.rules.learned.affine import one_window
from metaopt.tasks.base import Observation, Tasks, cut, observed_loss
from metaopt.teleport.base import Report, TeleportTrace


class _LossWithGradient(torch.autograd.Function):
    """L(w), with a gradient that is known already: backward multiplies, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *weights_and_grads: Tensor) -> Tensor:
        ctx.save_for_backward(*weights_and_grads[len(weights_and_grads) // 2 :])
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        scale = grads[0][:, None, None]
        return (None, *(scale * G for G in gradients), *(None for _ in gradients))


class Observe(Protocol):
    """(tasks, w) -> (L(w) as the meta-loss sees it [B], the observation as the rules see it)."""

    def __call__(
        self, tasks: Tasks, weights: Weights, report: Report | None = None
    ) -> tuple[Tensor, Observation]:
        """Look at w; ``report`` is that of the teleport that led there, and may know the pass."""


def first_order(
    tasks: Tasks, weights: Weights, report: Report | None = None
) -> tuple[Tensor, Observation]:
    """The observation is constant; the loss carries grad L(w), computed once, to w."""
    with torch.no_grad():
        passed = None if report is None else report.passed
        observation = tasks.observe(cut(weights), passed)
    loss = _LossWithGradient.apply(observed_loss(observation), *weights, *observation.grads)
    return loss, observation


def second_order(
    tasks: Tasks, weights: Weights, report: Report | None = None
) -> tuple[Tensor, Observation]:
    """Loss and observation are both differentiated; passes without a graph are of no use."""
    observation = tasks.observe(weights)
    return observed_loss(observation), observation


def as_judged(observe: Observe) -> Observe:
    """The observation as ``observe`` makes it; the loss, differentiable, as tasks are judged."""

    def judging(
        tasks: Tasks, weights: Weights, report: Report | None = None
    ) -> tuple[Tensor, Observation]:
        loss, observation = observe(tasks, weights, report)
        return tasks.judged(weights, loss), observation

    return judging


def judging(watch: NoWatch) -> Observe:
    """The observation is what an optimizer is shown; the loss what it is judged by, without graph.

    They differ where tasks show mini-batches, or keep data apart to be judged on. To judge is no
    part of a step.

    Args:
        watch: on the steps.
    """

    def judged(
        tasks: Tasks, weights: Weights, report: Report | None = None
    ) -> tuple[Tensor, Observation]:
        with torch.no_grad():
            passed = None if report is None else report.passed
            observation = tasks.observe(weights, passed)
            with watch.aside():
                return tasks.judged(weights, observed_loss(observation)), observation

    return judged


@dataclass(frozen=True)
class InnerState(Generic[S]):
    """B trajectories between two inner steps.

    Attributes:
        step: t, inner steps taken so far.
        weights: w_t.
        loss: L(w_t), [B].
        observation: of w_t.
        optimizer: the state of the optimizer.
    """

    step: int
    weights: Weights
    loss: Tensor
    observation: Observation
    optimizer: S

    def detach(self: InnerState[States]) -> InnerState[States]:
        """The same state with its graph cut, for optimizers made of rules."""
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
class Unrolled:
    """What an unroll computed.

    Attributes:
        losses: L(w_{t+1}) .. L(w_{t+K}), [K, B]; with the graph of the meta-gradient.
        teleports: or None without teleports.
    """

    losses: Tensor
    teleports: TeleportTrace | None


def resume(
    tasks: Tasks, step: int, weights: Weights, optimizer_state: S, observe: Observe
) -> InnerState[S]:
    """The inner state at given weights and optimizer state (one gradient evaluation)."""
    seen = tasks.at(step)
    loss, observation = observe(seen, weights)
    return InnerState(step, weights, loss, seen.shown(observation), optimizer_state)


def start(tasks: Tasks, optimizer: Optimizer[S], observe: Observe = first_order) -> InnerState[S]:
    """The inner state at the tasks' own initial weights."""
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
) -> tuple[InnerState[S], Unrolled]:
    """Advance B trajectories by ``steps`` inner steps.

    Args:
        tasks: B tasks.
        optimizer: what steps.
        state: from ``start`` or an earlier unroll.
        steps: K.
        observe: ``first_order`` or ``second_order``.
        watch: on the steps; what is measured of teleports for the trace is done aside.

    Returns:
        The state at t + K, still attached to the graph, and the losses on the way.
    """
    losses: list[Tensor] = []
    trace = _Trace()
    seen = tasks.at(state.step)
    with one_window(), watch.running():
        for _ in range(steps):
            taken = optimizer.step(state.weights, state.observation, state.optimizer, seen)
            seen = tasks.at(state.step + 1)
            loss, observation = observe(seen, taken.weights, taken.report)
            shown = seen.shown(observation)
            state = InnerState(state.step + 1, taken.weights, loss, shown, taken.state)
            losses.append(loss)
            with watch.aside():
                trace.add(taken.report, seen, observation)
        with watch.aside():
            teleports = trace.end(seen)
    return state, Unrolled(torch.stack(losses), teleports)


class _Trace:
    """Reports and what was observed after them, until so many become a part of the trace."""

    def __init__(self) -> None:
        self._reports: list[Report] = []
        self._after: list[Observation] = []
        self._parts: list[TeleportTrace] = []

    def add(self, report: Report | None, tasks: Tasks, observation: Observation) -> None:
        """Take note of one step: its report, and what was observed at its end."""
        if report is None:
            return
        self._reports.append(report)
        self._after.append(observation)
        if len(self._reports) == report.together:
            self._make(tasks)

    def end(self, tasks: Tasks) -> TeleportTrace | None:
        """The trace of all steps; None where there were no teleports."""
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
    """Whole trajectories from the tasks' own initial weights, without a graph.

    Args:
        tasks: B tasks.
        optimizer: what steps.
        steps: inner steps.
        watch: on the steps alone, the gradient evaluation of each in it.

    Returns:
        L(w_0) .. L(w_steps), [steps + 1, B], as the tasks judge it; and the teleports on the way.
    """
    with torch.no_grad():
        state = start(tasks, optimizer, judging(UNTIMED))
        _, unrolled = unroll(tasks, optimizer, state, steps, judging(watch), watch)
        return torch.cat([state.loss[None], unrolled.losses]), unrolled.teleports


def last_loss(tasks: Tasks, optimizer: Optimizer[S], steps: int) -> Tensor:
    """L(w_steps), [B], as the tasks judge it: the last of ``rollout``'s, and judged but once."""
    with torch.no_grad():
        state = start(tasks, optimizer)
        state, _ = unroll(tasks, optimizer, state, steps)
        return tasks.at(steps).judged(state.weights, state.loss)
