"""Schedule-Free gradient descent, a rule that averages, whose iterates are known."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.rules.base import Proposal, Rule, State
from metaopt.tasks.base import Observation
from metaopt.teleport.optimizer_state import Kept


class ScheduleFree(Rule):
    """z' = z - lr G,  x' = (1 - 1/t) x + z'/t,  y' = (1 - beta) z' + beta x'.

    The state holds z - y, so that weights that are loaded move z along, and one count of steps for
    each parameter, as parameters without a gradient take none.

    References:
        Defazio et al., The road less scheduled (2024).
    """

    beta: ClassVar[float] = 0.75

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr

    def kept(self, name: str) -> Kept:
        return Kept.TENSORS if name == "steps" else Kept.ENTRIES

    def initial_state(self, observation: Observation) -> State:
        weights = observation.weights
        like = weights[0]
        count = sum(W.shape[1:].numel() for W in weights)
        return {
            "ahead": like.new_zeros(len(like), 1, count),
            "steps": like.new_zeros(len(like), 1, len(weights)),
        }

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        steps = state["steps"] + 1
        updates, ahead = [], []
        ys, ds = observation.weights, self._ahead(observation.weights, state)
        for y, G, d, t in zip(ys, observation.grads, ds, steps[0, 0], strict=True):
            z = y + d - self.lr * G
            x = (1 - 1 / t) * self._averaged(y, d) + z / t
            new = (1 - self.beta) * z + self.beta * x
            updates.append(new - y)
            ahead.append((z - new).flatten(1))
        return Proposal(updates=tuple(updates)), {
            "ahead": torch.cat(ahead, dim=1)[:, None],
            "steps": steps,
        }

    def evaluated(self, weights: Weights, state: State) -> Weights:
        both = zip(weights, self._ahead(weights, state), strict=True)
        return tuple(self._averaged(y, d) for y, d in both)

    def trained(self, averaged: Weights, state: State) -> Weights:
        both = zip(averaged, self._ahead(averaged, state), strict=True)
        return tuple(x + (1 - self.beta) / self.beta * d for x, d in both)

    def _averaged(self, y: Tensor, d: Tensor) -> Tensor:
        return y - (1 - self.beta) / self.beta * d

    @staticmethod
    def _ahead(weights: Weights, state: State) -> list[Tensor]:
        """z - y, each shaped like the weights."""
        parts = state["ahead"][:, 0].split([W.shape[1:].numel() for W in weights], dim=1)
        return [d.reshape(W.shape) for d, W in zip(parts, weights, strict=True)]
