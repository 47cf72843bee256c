"""Damped Newton directions of two-layer tasks, over all of (W1, W2), in float64.

With H = s(W1 X), D = s'(W1 X), the residual R = W2 H - Y and w = (W1, W2) as one vector of
P = k n + m k entries (W1 row by row, then W2),

    grad L = J^T vec R,   grad^2 L = J^T J + [[0, S], [S^T, 0]],
    df[o, j] / dW1[a, c] = W2[o, a] D[a, j] X[c, j],   df[o, j] / dW2[o, a] = H[a, j],
    S[(a, c), (o, a)] = sum_j R[o, j] D[a, j] X[c, j],

since f is linear in each layer by itself (s'' = 0 except at kinks, a set of measure 0).
J [m N, P] is the Jacobian of the outputs.

A Newton direction needs a positive matrix, but away from a minimum the Hessian has eigenvalues of
both signs. There are two ways out, each damped by lambda, a share of the largest eigenvalue:

    GaussNewton      d = -(J^T J + lambda)^-1 grad L = -J^T (J J^T + lambda)^-1 vec R
    AbsoluteHessian  d = -(|grad^2 L| + lambda)^-1 grad L,  eigenvalues replaced by their moduli

The third is Newton's direction for W2 alone, in which the loss is quadratic, with W1 fixed:

    LastLayer        d = (0, -grad_{W2} L (H H^T + lambda)^-1)

References:
    Nocedal and Wright, Numerical Optimization (2006), section 10.3, for Gauss-Newton; Dauphin et
    al., arXiv 1406.2572, for the moduli.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from metaopt.base.network import LeakyReLU, Weights


class Observed(Protocol):
    """One gradient evaluation of B two-layer networks."""

    @property
    def grads(self) -> Weights:
        """grad L, shaped like the weights."""

    @property
    def inputs(self) -> Weights:
        """The input of each layer, each [B, in, N]."""


class TwoLayers(Protocol):
    """B two-layer regression problems side by side, such as a ``TaskBatch`` of two layers."""

    @property
    def s(self) -> LeakyReLU:
        """The activation between the layers."""

    @property
    def X(self) -> Tensor:
        """The inputs, [B, n, N]."""

    @property
    def Y(self) -> Tensor:
        """The targets, [B, m, N]."""

    def outputs(self, weights: Weights) -> Tensor:
        """f(w), [B, m, N]."""

    def observe(self, weights: Weights) -> Observed:
        """The gradient at w, and the inputs of the layers."""


def flat(weights: Weights) -> Tensor:
    """w as one vector a task, [B, P]: the entries of all layers, each row by row."""
    return torch.cat([W.flatten(1) for W in weights], dim=1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """a . b / (||a|| ||b||) of the rows of a and b, both [B, P] -> [B]; NaN if a row is 0."""
    unit_a, unit_b = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (a, b))
    return (unit_a * unit_b).sum(1)


def jacobian(tasks: TwoLayers, weights: Weights) -> Tensor:
    """J = d vec f / d w, [B, m N, P], with the outputs f row by row.

    Args:
        tasks: B tasks.
        weights: W1 [B, k, n] and W2 [B, m, k].
    """
    W1, W2 = weights
    Z = torch.bmm(W1, tasks.X)
    H, D = tasks.s(Z), tasks.s.derivative(Z)
    identity = torch.eye(W2.shape[1], dtype=W2.dtype, device=W2.device)
    of_W1 = torch.einsum("boa,baj,bcj->bojac", W2, D, tasks.X)
    of_W2 = torch.einsum("op,baj->bojpa", identity, H)
    outputs = W2.shape[1] * H.shape[2]
    return torch.cat([J.reshape(len(H), outputs, -1) for J in (of_W1, of_W2)], dim=2)


def hessian(tasks: TwoLayers, weights: Weights) -> Tensor:
    """grad^2 L = J^T J + [[0, S], [S^T, 0]], [B, P, P].

    Args:
        tasks: B tasks.
        weights: W1 [B, k, n] and W2 [B, m, k].
    """
    W1, W2 = weights
    Z = torch.bmm(W1, tasks.X)
    R = tasks.outputs(weights) - tasks.Y
    C = torch.einsum("boj,baj,bcj->boac", R, tasks.s.derivative(Z), tasks.X)
    identity = torch.eye(W1.shape[1], dtype=W1.dtype, device=W1.device)
    S = torch.einsum("boac,ae->bacoe", C, identity).reshape(len(Z), W1[0].numel(), W2[0].numel())
    J = jacobian(tasks, weights)
    found = torch.bmm(J.mT, J)
    split = W1[0].numel()
    found[:, :split, split:] += S
    found[:, split:, :split] += S.mT
    return found


class Curvature(ABC):
    """d = -(M + lambda)^-1 grad L, for a positive matrix M at B points and any damping.

    M is decomposed once, when the object is made.

    Args:
        tasks: B tasks, in float64.
        weights: W1 [B, k, n] and W2 [B, m, k].
    """

    @abstractmethod
    def __init__(self, tasks: TwoLayers, weights: Weights) -> None: ...

    @abstractmethod
    def direction(self, damping: float) -> Tensor:
        """The damped Newton direction d, [B, P].

        Args:
            damping: lambda divided by the largest eigenvalue of M, above 0.
        """

    def part(self, rows: Tensor) -> Tensor:
        """The entries of vectors [B, P] that d can change, with 0 for the others: here all."""
        return rows


def _damped(coefficients: Tensor, moduli: Tensor, damping: float) -> Tensor:
    """c_i / (e_i + lambda), lambda = damping max e, for c and e [B, R] -> [B, R, 1]."""
    largest = moduli.amax(dim=1, keepdim=True)
    return (coefficients / (moduli + damping * largest))[..., None]


class GaussNewton(Curvature):
    """d = -J^T (J J^T + lambda)^-1 vec R: J J^T, m N by m N, is smaller than J^T J."""

    def __init__(self, tasks: TwoLayers, weights: Weights) -> None:
        self._J = jacobian(tasks, weights)
        eigenvalues, self._U = torch.linalg.eigh(torch.bmm(self._J, self._J.mT))
        self._moduli = eigenvalues.clamp(min=0)
        residual = (tasks.outputs(weights) - tasks.Y).flatten(1)[..., None]
        self._coefficients = torch.bmm(self._U.mT, residual)[..., 0]

    def direction(self, damping: float) -> Tensor:
        """d, [B, P]."""
        solved = torch.bmm(self._U, _damped(self._coefficients, self._moduli, damping))
        return -torch.bmm(self._J.mT, solved)[..., 0]


class AbsoluteHessian(Curvature):
    """d = -V (|E| + lambda)^-1 V^T grad L, with grad^2 L = V E V^T."""

    def __init__(self, tasks: TwoLayers, weights: Weights) -> None:
        eigenvalues, self._V = torch.linalg.eigh(hessian(tasks, weights))
        self._moduli = eigenvalues.abs()
        gradient = flat(tasks.observe(weights).grads)[..., None]
        self._coefficients = torch.bmm(self._V.mT, gradient)[..., 0]

    def direction(self, damping: float) -> Tensor:
        """d, [B, P]."""
        return -torch.bmm(self._V, _damped(self._coefficients, self._moduli, damping))[..., 0]


class LastLayer(Curvature):
    """d = (0, -grad_{W2} L (H H^T + lambda)^-1): Newton's direction for W2, W1 fixed."""

    def __init__(self, tasks: TwoLayers, weights: Weights) -> None:
        observed = tasks.observe(weights)
        H = observed.inputs[1]
        self._moduli, self._V = torch.linalg.eigh(torch.bmm(H, H.mT))
        self._coefficients = torch.bmm(observed.grads[1], self._V)
        self._first = weights[0][0].numel()

    def direction(self, damping: float) -> Tensor:
        """d, [B, P]."""
        moduli = self._moduli.clamp(min=0)
        damped = moduli + damping * moduli.amax(dim=1, keepdim=True)
        of_W2 = torch.bmm(self._coefficients / damped[:, None], self._V.mT).flatten(1)
        return torch.cat([of_W2.new_zeros(len(of_W2), self._first), -of_W2], dim=1)

    def part(self, rows: Tensor) -> Tensor:
        """The entries of W2, with 0 for those of W1."""
        return torch.cat([torch.zeros_like(rows[:, : self._first]), rows[:, self._first :]], dim=1)


CURVATURES: dict[str, type[Curvature]] = {
    "Gauss-Newton": GaussNewton,
    "absolute Hessian": AbsoluteHessian,
    "W2 alone": LastLayer,
}
