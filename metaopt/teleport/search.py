"""Where on the orbit to go: the direction in which the gradient's norm grows fastest."""

from __future__ import annotations

import torch

from metaopt.base.network import Weights
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.engine import TeleportEngine
from metaopt.teleport.guard import Generators


def ascent_direction(tasks: TaskBatch, weights: Weights, engine: TeleportEngine) -> Generators:
    """D = d/dT ||grad L(exp(T).w)||_F^2 at T = 0, for each pair of adjacent layers [B, k_l, k_l].

    Args:
        tasks: B tasks.
        weights: w.
        engine: whose action and element map carry T out.
    """
    with torch.enable_grad():
        generators = tuple(
            W.new_zeros(W.shape[0], W.shape[1], W.shape[1]).requires_grad_() for W in weights[:-1]
        )
        moved = engine.move(tuple(W.detach() for W in weights), generators, tasks)
        squares = [G.square().sum() for G in tasks.observe(moved).grads]
        return torch.autograd.grad(torch.stack(squares).sum(), generators)
