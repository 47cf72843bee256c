"""Training and evaluation under rules that average: ``optimizer.train()``, ``optimizer.eval()``.

    eval():   x = evaluated(y),   w <- x
    train():  w <- y where w is still x, elsewhere trained(w)

Gradients are taken at y; x, the average of what was stepped to, is what is evaluated and saved. So
that y comes back bit for bit, rounded or not, it is kept with the state while the parameters hold
x. An entry that was changed meanwhile (loaded, say) is a new x, and what trains is made from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.optim.half import unrounded, write
from metaopt.optim.members import Members
from metaopt.optim.memory import AVERAGED, STEPS, remember, remembered
from metaopt.optim.states import as_matrix
from metaopt.optim.stepper import Stepper
from metaopt.rules.base import State
from metaopt.rules.composed import MetaOptimizer, States

TRAINED = "trained"
"""The name of y in the state of a parameter."""


def require_train_mode(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``RuntimeError`` if the parameters hold x, where no gradient belongs."""
    if remembered(groups)[AVERAGED]:
        raise RuntimeError(
            "the parameters hold averaged weights since optimizer.eval(), and steps go on from "
            "those that train: call optimizer.train() before the forward pass"
        )


class TwoModes(ABC, torch.optim.Optimizer):
    """An optimizer of torch whose parameters hold the weights to train or those to evaluate."""

    _members: Members
    _stepper: Stepper

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the rules compute in."""
        return self._members.dtype

    def in_order(self) -> list[Tensor]:
        """All parameters, in the order in which rules see them."""
        return self._members.parameters

    @abstractmethod
    def _states(self) -> list[State]:
        """The state of each of them, with all that rules keep."""

    @abstractmethod
    def _follow(self) -> None:
        """Follow changes that users have made to the groups by hand."""

    def eval(self) -> None:
        """Put the averaged weights into the parameters, to be evaluated or saved.

        Nothing happens under a rule that does not average, before the first step, or if they are
        there already.
        """
        if remembered(self.param_groups)[AVERAGED]:
            return
        with _plainly(self._members.device):
            self._follow()
            states = self._states()
            weights = self._unrounded(states)
            averaged = _moved(self._stepper, MetaOptimizer.evaluated, weights, states)
            if averaged is None:
                return
            if remembered(self.param_groups)[STEPS]:
                for p, y, x, state in zip(self.in_order(), weights, averaged, states, strict=True):
                    state[TRAINED] = y.clone()
                    write(p, x, state)
        remember(self, **{AVERAGED: True})

    def train(self) -> None:
        """Put the weights that train into the parameters again, for further steps.

        They are those of before ``eval()``, bit for bit. Entries that were changed since are taken
        as averaged weights, from which those that train are computed. Nothing happens if the
        parameters hold weights that train.
        """
        if not remembered(self.param_groups)[AVERAGED]:
            return
        with _plainly(self._members.device):
            self._follow()
            if remembered(self.param_groups)[STEPS]:
                self._train()
        remember(self, **{AVERAGED: False})

    def _train(self) -> None:
        states = self._states()
        found = self._unrounded(states)
        # Whoever came while the parameters held x, or from a file without y, has none.
        before = [state.get(TRAINED, x) for x, state in zip(found, states, strict=True)]
        written = _moved(self._stepper, MetaOptimizer.evaluated, before, states) or before
        trained = _moved(self._stepper, MetaOptimizer.trained, found, states) or found
        each = zip(self.in_order(), found, written, before, trained, states, strict=True)
        for p, x, x_before, y_before, y, state in each:
            write(p, torch.where(x == x_before, y_before, y), state)
            state.pop(TRAINED, None)

    def _unrounded(self, states: Sequence[State]) -> list[Tensor]:
        both = zip(self.in_order(), states, strict=True)
        return [unrounded(p, state, self.dtype) for p, state in both]


@contextmanager
def _plainly(device: torch.device) -> Iterator[None]:
    """As a step computes: without a graph, in the rule's precision, into tensors that stay."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _moved(
    stepper: Stepper,
    move: Callable[[MetaOptimizer, Weights, States], Weights],
    weights: Sequence[Tensor],
    states: Sequence[State],
) -> list[Tensor] | None:
    """x of y or y of x, shaped like the parameters; None where the rule does not average."""
    optimizer = stepper.optimizer
    matrices = tuple(map(as_matrix, weights))
    found = move(optimizer, matrices, stepper.layout.together(states, optimizer.rules))
    if all(new is old for new, old in zip(found, matrices, strict=True)):
        return None
    return [new.reshape(W.shape) for new, W in zip(found, weights, strict=True)]
