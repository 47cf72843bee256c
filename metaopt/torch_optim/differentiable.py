"""The learned optimizer in ``higher``: the same step with its graph kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import higher
from torch import Tensor

from metaopt.torch_optim.horizon import tell_horizon
from metaopt.torch_optim.memory import STEPS, remembered
from metaopt.torch_optim.optimizer import LearnedOptimizer
from metaopt.torch_optim.stepper import Rates, Stepper


class DifferentiableLearnedOptimizer(higher.optim.DifferentiableOptimizer):
    """The same step with its graph kept, for ``higher.innerloop_ctx``.

    Meta-gradients flow to ``LearnedOptimizer.meta_optimizer`` (the rule's own, where model and rule
    have one dtype and device), and to ``lr`` and ``weight_decay`` where ``higher`` overrides them
    by tensors; the order (first or second) is that of the rule's configuration.
    """

    def __init__(self, other: LearnedOptimizer, *arguments: Any, **options: Any) -> None:
        super().__init__(other, *arguments, **options)
        self._rule = other.rule
        self._places = other.places
        self._dtype = other.dtype
        self._loss: Tensor | None = None
        # Forward hooks belong to the functional copy of the model, which makes its own.
        found = other.chain_of(self._fmodel, keep_graph=True)
        self._stepper = Stepper(other.meta_optimizer, found, other.units(), other.in_order())
        if other.teleports_off is not None:
            self._stepper.turn_teleports_off(other.teleports_off)

    def step(self, loss: Tensor, *arguments: Any, **options: Any) -> Any:
        """One inner step from the loss of the functional model."""
        self._loss = loss
        return super().step(loss, *arguments, **options)

    def _update(self, grouped_grads: Sequence[Sequence[Tensor | None]], **options: Any) -> None:
        groups = self.param_groups
        steps = remembered(groups)[STEPS] + 1
        tell_horizon(self._rule, steps)
        for group in groups:
            group[STEPS] = steps
        grads = [grouped_grads[g][i] for g, i in self._places]
        new, states = self._stepper.step(
            [groups[g]["params"][i].to(self._dtype) for g, i in self._places],
            [None if G is None else G.to(self._dtype) for G in grads],
            None if self._loss is None else self._loss.to(self._dtype),
            [Rates.of(groups[g]) for g, _ in self._places],
            [self.state[g][i] for g, i in self._places],
            differentiate_features=self._rule.config.meta.order == 2,
        )
        for (g, i), W, state in zip(self._places, new, states, strict=True):
            groups[g]["params"][i] = W.to(groups[g]["params"][i].dtype)
            self.state[g][i].update(state)


higher.register_optim(LearnedOptimizer, DifferentiableLearnedOptimizer)
