"""Batched networks with label noise, their symmetries, and where noise sends them.

    y = f(teacher, x) + n,   loss |y - f(weights, x)|^2,   x one of the rows of a design

On the teacher's orbit a per-sample gradient is -2 J(x)^T n, so that all moments of the noise are
exact sums over the design. A symmetry is a pair of stacks of weights, X_in -> g X_in and
X_out -> g^-T X_out, g a matrix (linear) or a diagonal (scaling); noise pushes its charge
X_in X_in^T - X_out X_out^T by lr^2 (E[G_in G_in^T] - E[G_out G_out^T]) a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from metaopt.symmetry.geometric_mean import geometric_mean, power

Weights = tuple[Tensor, ...]
"""Matrices, each with a leading axis of runs or without one."""
Side = tuple[tuple[int, bool], ...]
"""Which weights, and whether units are their columns."""

SWEEPS = 1000
BATCH = 4
"""Samples of a step: about the number for which noise does most in a step that is stable."""


@dataclass(frozen=True)
class Pair:
    """A symmetry."""

    name: str
    incoming: Side
    outgoing: Side
    linear: bool  # or scaling

    def stacks(self, weights: Weights) -> tuple[Tensor, Tensor]:
        """Both sides, units first: [.., k, any] each."""
        return _stack(weights, self.incoming), _stack(weights, self.outgoing)

    def products(self, weights: Weights) -> tuple[Tensor, Tensor]:
        """X X^T of both sides, of scalings the diagonals in a matrix: [.., k, k] each."""
        both = [X @ X.mT for X in self.stacks(weights)]
        if not self.linear:
            both = [torch.diag_embed(M.diagonal(dim1=-2, dim2=-1)) for M in both]
        return both[0], both[1]

    def charge(self, weights: Weights) -> Tensor:
        """[.., k, k]."""
        incoming, outgoing = self.products(weights)
        return incoming - outgoing

    def move(self, weights: Weights, g: Tensor) -> Weights:
        """g . weights, g [.., k, k]."""
        moved = list(weights)
        for side, element in (
            (self.incoming, g),
            (self.outgoing, torch.linalg.inv(g).mT),
        ):
            for index, columns in side:
                M = moved[index]
                moved[index] = M @ element.mT if columns else element @ M
        return tuple(moved)


def _stack(weights: Weights, side: Side) -> Tensor:
    return torch.cat([weights[i].mT if columns else weights[i] for i, columns in side], -1)


@dataclass(frozen=True)
class Problem:
    """A network, its data, its noise."""

    name: str
    outputs: Callable[[Weights, Tensor], Tensor]  # weights [B, ..], inputs [B, S, ..] -> [B, S, m]
    teacher: Weights  # without a leading axis
    inputs: Tensor  # the design, [N, ..]
    root: Tensor  # n = root z, z standard normal: [m, m]
    pairs: tuple[Pair, ...]
    lr: float  # the largest that is run, in batches of ``BATCH``

    def targets(self) -> Tensor:
        """f(teacher, x): [N, m]."""
        return self.outputs(_batched(self.teacher), self.inputs[None])[0]

    def slopes(self, weights: Weights) -> Weights:
        """J(x) at weights without a leading axis: [N, m, *shape] each."""

        def outputs(leaf: Weights, x: Tensor) -> Tensor:
            return self.outputs(leaf, x[None, None])[0, 0]

        found = vmap(jacrev(outputs), in_dims=(None, 0))(_batched(weights), self.inputs)
        return tuple(J.squeeze(2) for J in found)

    def gradients(self, weights: Weights) -> Weights:
        """2 root^T J(x), of which -z^T is a sample's gradient: [N, m, *shape] each."""
        return tuple(
            2 * torch.einsum("mp,nm...->np...", self.root, J) for J in self.slopes(weights)
        )

    def moments(self, weights: Weights) -> list[tuple[Tensor, Tensor]]:
        """E[G_in G_in^T] and E[G_out G_out^T] on the teacher's orbit, of each pair: [k, k]."""
        stacks = self.gradients(weights)
        products = [pair.products(stacks) for pair in self.pairs]
        return [(a.sum(1).mean(0), b.sum(1).mean(0)) for a, b in products]

    def equilibrium(self, accuracy: float = 1e-12) -> Weights:
        """The point of the teacher's orbit that noise leaves where it is.

        Pairs in turn, each by its closed form, until none moves: they share weights in deep nets.
        """
        weights = self.teacher
        for _ in range(SWEEPS):
            largest = 0.0
            for i, pair in enumerate(self.pairs):
                noise_in, noise_out = self.moments(weights)[i]
                P = geometric_mean(noise_out, noise_in)
                weights = pair.move(weights, power(P, 0.5))
                largest = max(largest, float((P - torch.eye(len(P), dtype=P.dtype)).abs().max()))
            if largest < accuracy:
                return weights
        raise RuntimeError(f"{self.name}: the equilibrium was not reached in {SWEEPS} sweeps")

    def rate(self, weights: Weights) -> float:
        """How fast the slowest charge relaxes to the equilibrium, a step at lr 1 and ``BATCH``.

        A displacement t of a unit changes its charge by 2 (a + b) t and its drift by -4 s t, a, b
        squared norms and s the noise of either side. Of matrices the smallest eigenvalue.
        """
        slowest = []
        for pair, (S, _) in zip(self.pairs, self.moments(weights), strict=True):
            a, b = pair.products(weights)
            back = power(a + b, -0.5)
            slowest.append(2 * torch.linalg.eigvalsh(back @ S @ back)[0])
        return float(torch.stack(slowest).min()) / BATCH

    def residual(self, weights: Weights) -> float:
        """The largest entry of a drift, as a share of the noise on one side: 0 at equilibrium."""
        return max(
            float((a - b).abs().max() / a.diagonal().mean()) for a, b in self.moments(weights)
        )


def _batched(weights: Weights) -> Weights:
    return tuple(W[None] for W in weights)


def displaced(problem: Problem, starts: int, far: float, noise: float, draws: Tensors) -> Weights:
    """Points beside the teacher's orbit: g . (teacher + noise), g = exp(far T): [starts, ..]."""
    weights = tuple(W + noise * draws(starts, *W.shape) for W in problem.teacher)
    for pair in problem.pairs:
        k = pair.stacks(weights)[0].shape[-2]
        T = far * draws(starts, k, k)
        T = (T + T.mT) / 2 if pair.linear else torch.diag_embed(T.diagonal(dim1=-2, dim2=-1))
        weights = pair.move(weights, torch.linalg.matrix_exp(T))
    return weights


Tensors = Callable[..., Tensor]
"""Shape -> standard normal numbers."""


def repeated(weights: Weights, runs: int) -> Weights:
    """Each start ``runs`` times, side by side."""
    return tuple(W.repeat_interleave(runs, 0) for W in weights)


def invariants(problem: Problem, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """What an orthogonal change of units leaves of the charges: name -> [B]."""
    found = {}
    for pair in problem.pairs:
        M = pair.charge(tuple(weights))
        found[f"{pair.name}: Tr M"] = M.diagonal(dim1=-2, dim2=-1).sum(-1)
        if pair.linear:
            found[f"{pair.name}: Tr M^2"] = (M @ M).diagonal(dim1=-2, dim2=-1).sum(-1)
        else:
            diagonal = M.diagonal(dim1=-2, dim2=-1)
            for unit in range(diagonal.shape[-1]):
                found[f"{pair.name}: unit {unit}"] = diagonal[..., unit]
    return found
