"""The direction on the orbit in which the norm of the gradient grows fastest."""

from __future__ import annotations

import torch

from metaopt.base.network import Weights
from metaopt.tasks.base import Problem
from metaopt.teleport.base import Generators
from metaopt.teleport.engine import TeleportEngine, known_network


def ascent_direction(problem: Problem, weights: Weights, engine: TeleportEngine) -> Generators:
    """D = d/dT ||grad L(exp(T).w)||_F^2 at T = 0, one [B, k_l, k_l] for each pair of layers.

    Args:
        problem: the problem; its network must be known.
        weights: w, each [B, out, in].
        engine: the engine whose action and element map turn T into a teleport.

    Raises:
        InexactActionError: if the problem's family does not expose its network.
    """
    network = known_network(problem)
    with torch.enable_grad():
        generators = tuple(
            W.new_zeros(W.shape[0], W.shape[1], W.shape[1]).requires_grad_() for W in weights[:-1]
        )
        moved = engine.move(tuple(W.detach() for W in weights), generators, network)
        squares = [G.square().sum() for G in problem.observe(moved).grads]
        return torch.autograd.grad(torch.stack(squares).sum(), generators)
