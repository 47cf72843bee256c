"""Long SGD on batched problems, at three learning rates, and gradient descent beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from tqdm import trange

from studies.noether.claims import HALVINGS, Array, to_zero
from studies.noether.orbits import BATCH, Problem, Weights, invariants

CHUNK = 512
"""Steps whose random numbers are drawn at once."""
LOOK = 8
"""Steps between two looks at the charges."""


def gradients(problem: Problem, weights: Weights, x: Tensor, y: Tensor) -> Weights:
    """Of each run's own mean loss |y - f(x)|^2: inputs [B, S, ..], targets [B, S, m]."""
    leaves = tuple(W.requires_grad_() for W in weights)
    loss = (problem.outputs(leaves, x) - y).square().sum() / x.shape[1]
    return torch.autograd.grad(loss, leaves)


class Runs:
    """SGD on samples of the design, drawn with replacement, with fresh label noise."""

    def __init__(self, problem: Problem, start: Weights, draws: Generator) -> None:
        self.problem, self.draws = problem, draws
        self.weights = tuple(W.clone() for W in start)
        self.targets = problem.targets()

    def advance(self, lr: float, steps: int, what: str) -> dict[str, Array]:
        """Charges, averaged over the steps: name -> [B]."""
        problem, count = self.problem, len(self.weights[0])
        total: dict[str, Tensor] = {}
        looks = 0
        with trange(steps, desc=what, leave=False, mininterval=1) as bar:
            for step in bar:
                at = step % CHUNK
                if at == 0:
                    shape = (min(CHUNK, steps - step), count, BATCH)
                    rows = torch.from_numpy(self.draws.integers(len(problem.inputs), size=shape))
                    noise = self.draws.standard_normal((*shape, len(problem.root)))
                    y = self.targets[rows] + torch.from_numpy(noise) @ problem.root.mT
                slopes = gradients(problem, self.weights, problem.inputs[rows[at]], y[at])
                self.weights = tuple(
                    W.detach() - lr * G for W, G in zip(self.weights, slopes, strict=True)
                )
                if step % LOOK == 0:
                    looks += 1
                    for name, value in invariants(problem, self.weights).items():
                        total[name] = total[name] + value if name in total else value
        return {name: np.asarray(value / looks) for name, value in total.items()}


def descent(problem: Problem, start: Weights, lr: float, steps: int) -> Weights:
    """Gradient descent on the mean loss over design and noise."""
    weights = tuple(W.clone() for W in start)
    x = problem.inputs.expand(len(start[0]), *problem.inputs.shape)
    y = problem.targets().expand(len(start[0]), -1, -1)
    for _ in range(steps):
        slopes = gradients(problem, weights, x, y)
        weights = tuple(W.detach() - lr * G for W, G in zip(weights, slopes, strict=True))
    return weights


@dataclass(frozen=True)
class Length:
    """Of a run, in relaxation times of the slowest charge at each learning rate."""

    first: float = 6.0  # from the start on, at the largest, before averages begin
    burn: float = 4.0  # at the others, each from where the larger one ended
    average: tuple[float, ...] = (3.0, 2.0, 2.0)

    def times(self, factor: float) -> Length:
        """Longer or shorter."""
        averages = tuple(factor * length for length in self.average)
        return Length(factor * self.first, factor * self.burn, averages)


def limits(
    problem: Problem, start: Weights, rate: float, length: Length, draws: Generator
) -> dict[str, dict[str, Array]]:
    """Mean charges at lr, lr / 2, lr / 4 and, of each run, their limit lr -> 0.

    Args:
        problem: with the largest learning rate.
        start: [B, ..].
        rate: of relaxation a step at learning rate 1, ``Problem.rate``.
        length: of the runs.
        draws: for samples and noise.

    Returns:
        "1", "0.5", "0.25" (shares of lr) and "0" -> name of the charge -> [B].
    """
    runs = Runs(problem, start, draws)
    found: dict[str, dict[str, Array]] = {}
    for i, share in enumerate(HALVINGS):
        lr = problem.lr * share
        unit = 1 / (rate * lr**2)
        burn = length.burn if i else length.first
        runs.advance(lr, round(burn * unit), f"{problem.name}, lr {lr:.3g}, to equilibrium")
        steps = max(LOOK, round(length.average[i] * unit))
        found[f"{share:g}"] = runs.advance(lr, steps, f"{problem.name}, lr {lr:.3g}, averages")
    names = found["1"].keys()
    found["0"] = {name: to_zero([found[f"{s:g}"][name] for s in HALVINGS]) for name in names}
    return found
