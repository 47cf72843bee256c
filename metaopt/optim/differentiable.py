"""The learned optimizer in ``higher``: the same step with its graph kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import higher
import torch
from torch import Tensor

from metaopt.optim.half import cast_with_graph
from metaopt.optim.horizon import HorizonWatch, checked
from metaopt.optim.memory import STEPS, remembered
from metaopt.optim.modes import require_train_mode
from metaopt.optim.optimizer import LearnedOptimizer
from metaopt.optim.rates import Rates
from metaopt.rules.composed import MetaOptimizer
from metaopt.tasks.base import share_left


class DifferentiableLearnedOptimizer(higher.optim.DifferentiableOptimizer):
    """The same step with its graph kept, for ``higher.innerloop_ctx``.

    Meta-gradients flow to the parameters of the rule, ``LearnedOptimizer.rule.optimizer``, whatever
    their dtype and device, and to ``lr``, ``weight_decay`` and ``learned_decay`` where ``higher``
    overrides them by tensors; the order (first or second) is that of the rule's configuration. With
    ``track_higher_grads=False`` nothing of a step is kept but weights and states.
    """

    def __init__(self, other: LearnedOptimizer, *arguments: Any, **options: Any) -> None:
        require_train_mode(other.param_groups)
        super().__init__(other, *arguments, **options)
        self._rule, self._horizon = other.rule, checked(other.horizon)
        self._horizon_watch = HorizonWatch(self._rule)
        self._places = other.places
        self._dtype = other.dtype
        self._loss: Tensor | None = None
        # What the layers of the functional copy see is not what those of the model do.
        self._stepper = other.stepper(
            self._fmodel, self._as_in_graph(other), keep_graph=self._track_higher_grads
        )
        if other.teleports_off is not None:
            self._stepper.turn_teleports_off(other.teleports_off)

    def _as_in_graph(self, other: LearnedOptimizer) -> MetaOptimizer:
        """The rule's optimizer, cast with its graph to the model's dtype and device."""
        own = other.rule.optimizer
        if other.meta_optimizer is own or not self._track_higher_grads:
            return other.meta_optimizer
        return cast_with_graph(own, other.in_order()[0].device, other.dtype)

    def step(self, loss: Tensor, *arguments: Any, **options: Any) -> Any:
        """One inner step from the loss of the functional model."""
        self._loss = loss
        try:
            return super().step(loss, *arguments, **options)
        finally:
            # Its graph is the caller's to keep.
            self._loss = None

    def _update(self, grouped_grads: Sequence[Sequence[Tensor | None]], **options: Any) -> None:
        groups = self.param_groups
        steps = remembered(groups)[STEPS] + 1
        self._horizon_watch.tell(steps, self._horizon)
        for group in groups:
            group[STEPS] = steps
        grads = [grouped_grads[g][i] for g, i in self._places]
        with torch.set_grad_enabled(self._track_higher_grads and torch.is_grad_enabled()):
            weights = [groups[g]["params"][i].to(self._dtype) for g, i in self._places]
            taken = self._stepper.advance(
                weights,
                [None if G is None else G.to(self._dtype) for G in grads],
                None if self._loss is None else self._loss.to(self._dtype),
                [Rates.of(groups[g]) for g, _ in self._places],
                [self.state[g][i] for g, i in self._places],
                differentiate_features=self._rule.config.meta.order == 2,
                left=share_left(weights[0][None], steps - 1, self._horizon),
            )
            states = self._stepper.layout.apart(taken.after)
            for (g, i), W, state in zip(self._places, taken.weights, states, strict=True):
                before = groups[g]["params"][i]
                after = W.to(before.dtype)
                # What stays is a node of its own too: the next gradient is that by the weights as
                # they are then, not by those that the others came from.
                groups[g]["params"][i] = after.view_as(after) if after is before else after
                self.state[g][i].update(state)


higher.register_optim(LearnedOptimizer, DifferentiableLearnedOptimizer)
