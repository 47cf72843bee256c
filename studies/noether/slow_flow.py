"""Where SGD goes on the orbit of a minimum for small learning rates: all of the flow, not only M.

Noise kicks w off the orbit, gradient flow brings it back to another point of it; on average a step
moves w along the orbit by

    -(lr^2 / S) 1/2 P grad Tr(X H(w)),   H X + X H = E[g g^T],

H the Hessian, P the projection on its kernel, X held. Gradient flow conserves charges, so that this
moves M by (lr^2 / S) (E[G_in G_in^T] - E[G_out G_out^T]), which is zero at the equilibrium of the
closed forms. But M is k (k + 1) / 2 numbers and the orbit of a linear group has k^2 dimensions: the
flow may still turn the units, w -> exp(tA) w with A antisymmetric, and where A and M do not commute
it leaves the closed form. It ends where M turns with the units, and only what turning leaves (Tr M,
Tr M^2) rests. Positive scalings commute, and so does all that is diagonal in one basis: there
A = 0.

Reference: Li, Wang and Arora, What happens after SGD reaches zero loss?, arXiv 2110.06914.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import trange

from studies.noether.orbits import BATCH, Problem, Weights, invariants
from studies.noether.sgd import gradients

APART = 1e-3
"""Of second differences of gradients."""
PACE = 0.03
"""Step of the slow flow, in relaxation times."""
KERNEL = 1e-8
"""Eigenvalues below this share of the largest belong to the orbit."""


def flat(weights: Weights) -> Tensor:
    """[.., all]."""
    return torch.cat([W.flatten(-2) for W in weights], -1)


def shaped(v: Tensor, like: Weights) -> Weights:
    """The inverse of ``flat``."""
    sizes = [W.shape[-2:].numel() for W in like]
    parts = zip(v.split(sizes, -1), like, strict=True)
    return tuple(part.unflatten(-1, W.shape[-2:]) for part, W in parts)


def _slopes(problem: Problem, points: Tensor) -> Tensor:
    """Of the mean loss, at points [B, all]."""
    x = problem.inputs.expand(len(points), *problem.inputs.shape)
    y = problem.targets().expand(len(points), -1, -1)
    weights = tuple(W.clone() for W in shaped(points, problem.teacher))
    return flat(gradients(problem, weights, x, y))


def _curved(problem: Problem, w: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues above zero and their eigenvectors [all, r] of the Hessian on the orbit."""
    J = flat(problem.slopes(shaped(w, problem.teacher))).flatten(0, 1)
    values, vectors = torch.linalg.eigh(2 * J.mT @ J / len(problem.inputs))
    kept = values > KERNEL * values[-1]
    return values[kept], vectors[:, kept]


def drift(problem: Problem, weights: Weights) -> Weights:
    """-1/2 P grad Tr(X H) at a point of the teacher's orbit, without a leading axis."""
    w = flat(weights)
    h, V = _curved(problem, w)
    G = flat(problem.gradients(weights)).flatten(0, 1) @ V
    X = (G.mT @ G / len(problem.inputs)) / (h[:, None] + h)
    values, vectors = torch.linalg.eigh(X)
    along = (V @ vectors).mT
    slopes = _slopes(problem, torch.cat([w + APART * along, w - APART * along, w[None]]))
    second = (slopes[: len(h)] + slopes[len(h) : -1] - 2 * slopes[-1]) / APART**2
    third = values @ second
    return shaped(-0.5 * (third - V @ (V.mT @ third)), weights)


def rest(problem: Problem, weights: Weights, steps: int) -> dict[str, float]:
    """Invariants of charges after so many steps of the slow flow, by the midpoint rule."""
    pace = PACE / (problem.rate(weights) * BATCH)
    w = flat(weights)

    def down(v: Tensor) -> Tensor:
        return flat(drift(problem, shaped(v, problem.teacher)))

    for _ in trange(steps, desc=f"{problem.name}, slow flow", leave=False, mininterval=1):
        w = w + pace * down(w + pace / 2 * down(w))
        # Back onto the orbit, across it, by Newton's steps.
        for _ in range(2):
            h, V = _curved(problem, w)
            w = w - V @ ((V.mT @ _slopes(problem, w[None])[0]) / h)
    ended = invariants(problem, shaped(w, problem.teacher))
    return {name: float(value) for name, value in ended.items()}
