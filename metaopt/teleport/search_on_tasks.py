"""The search for the largest gradient, on the orbits of many tasks side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.tasks.base import Problem
from metaopt.teleport.base import Generators
from metaopt.teleport.engine import TeleportEngine, known_network
from metaopt.teleport.search import Evaluate, Steps, climb


def gradient_norms(problem: Problem, weights: Weights, engine: TeleportEngine) -> Evaluate:
    """T -> ||grad L(exp(T).w)||_F^2 of each task, [B], and its gradient in T.

    Args:
        problem: the problem; its network must be known.
        weights: w, each [B, out, in].
        engine: the engine whose action and element map turn T into a teleport.

    Raises:
        InexactActionError: if the problem's family does not expose its network.
    """
    network = known_network(problem)
    start = tuple(W.detach() for W in weights)

    def evaluate(generators: Generators) -> tuple[Tensor, Generators]:
        leaves = tuple(T.detach().requires_grad_() for T in generators)
        with torch.enable_grad():
            moved = engine.move(start, tuple(engine.action.algebra(T) for T in leaves), network)
            squares = [G.square().sum(dim=(1, 2)) for G in problem.observe(moved).grads]
            value = torch.stack(squares).sum(0)
            return value.detach(), torch.autograd.grad(value.sum(), leaves)

    return evaluate


def steepest_generators(
    problem: Problem, weights: Weights, engine: TeleportEngine, steps: int, how: Steps
) -> Generators:
    """The generators, one [B, k_l, k_l] for each pair of layers, at which a search ends.

    Args:
        problem: see ``gradient_norms``, as for the next two.
        weights: see there.
        engine: see there.
        steps: the number of steps, at least 1.
        how: how it steps.
    """
    start = tuple(W.new_zeros(len(W), W.shape[1], W.shape[1]) for W in weights[:-1])
    evaluate = gradient_norms(problem, weights, engine)
    return climb(evaluate, start, steps, how, lambda generators: generators).generators
