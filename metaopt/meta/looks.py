"""How the inner loop looks at weights: which loss it takes, and through what gradients flow.

    (tasks, w) -> (L(w), observation at w)

*First order* treats the observation as a constant of the meta-gradient, *second order*
differentiates it as well (``unroll``). Either may take its loss from the data that tasks are judged
on, and at an average of iterates instead of at w.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metaopt.base.network import Weights
from metaopt.base.stopwatch import NoWatch
from metaopt.tasks.base import Observation, Tasks, cut, observed_loss
from metaopt.teleport.base import Report


class _LossWithGradient(torch.autograd.Function):
    """L(w) [B] with grad L(w) already known, so that backward only multiplies by it."""

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
    """How ``unroll`` looks at weights: (tasks, w) -> (L(w) [B], observation).

    The loss is the one that ``unroll`` returns; the observation is the one that the rules read.
    ``first_order`` and ``second_order`` make both from the same gradient evaluation, ``as_judged``
    and ``judging`` take the loss from the data that tasks are judged on.
    """

    def __call__(
        self,
        tasks: Tasks,
        weights: Weights,
        report: Report | None = None,
        evaluated: Weights | None = None,
    ) -> tuple[Tensor, Observation]:
        """Evaluate loss and gradient at w.

        Args:
            tasks: B tasks, as the inner step sees them (``Tasks.at``).
            weights: w, each [B, out, in].
            report: of the teleport that led to w, or None; it may already hold the forward pass
                at w, which then is not made again.
            evaluated: where the loss that tasks are judged by is taken, if that is not w but an
                average of iterates.
        """


def first_order(
    tasks: Tasks,
    weights: Weights,
    report: Report | None = None,
    evaluated: Weights | None = None,
) -> tuple[Tensor, Observation]:
    """The observation is a constant of the meta-gradient; only the loss is differentiable.

    See ``Observe`` for the arguments.
    """
    with torch.no_grad():
        passed = None if report is None else report.passed
        observation = tasks.observe(cut(weights), passed)
    loss = _LossWithGradient.apply(observed_loss(observation), *weights, *observation.grads)
    return loss, observation


def second_order(
    tasks: Tasks,
    weights: Weights,
    report: Report | None = None,
    evaluated: Weights | None = None,
) -> tuple[Tensor, Observation]:
    """The loss and the observation are both differentiable functions of the weights.

    See ``Observe`` for the arguments. A forward pass that ``report`` holds has no graph, so the
    pass is always made here.
    """
    observation = tasks.observe(weights)
    return observed_loss(observation), observation


def as_judged(observe: Observe) -> Observe:
    """An ``Observe`` whose loss is the one that tasks are judged by (``Tasks.judged``).

    Args:
        observe: ``first_order`` or ``second_order``; it makes the observation. The loss remains
            differentiable.
    """

    def judging(
        tasks: Tasks,
        weights: Weights,
        report: Report | None = None,
        evaluated: Weights | None = None,
    ) -> tuple[Tensor, Observation]:
        loss, observation = observe(tasks, weights, report)
        return judged_at(tasks, weights, loss, evaluated), observation

    return judging


def judging(watch: NoWatch) -> Observe:
    """An ``Observe`` without a graph, whose loss is the one that tasks are judged by.

    The judged loss differs from the observed one if tasks have mini-batches, or keep some data
    apart to be judged on.

    Args:
        watch: times the inner steps; judging is not counted as a part of them.
    """

    def judged(
        tasks: Tasks,
        weights: Weights,
        report: Report | None = None,
        evaluated: Weights | None = None,
    ) -> tuple[Tensor, Observation]:
        with torch.no_grad():
            passed = None if report is None else report.passed
            observation = tasks.observe(weights, passed)
            with watch.aside():
                return judged_at(tasks, weights, observed_loss(observation), evaluated), observation

    return judged


def judged_at(
    tasks: Tasks, weights: Weights, observed: Tensor, evaluated: Weights | None
) -> Tensor:
    """The loss that tasks are judged by, at w or at the weights that are evaluated in its place."""
    if evaluated is None or all(x is w for x, w in zip(evaluated, weights, strict=True)):
        return tasks.judged(weights, observed)
    return tasks.judged(evaluated, None)
