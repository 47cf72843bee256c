"""The lowest loss that a network with one hidden layer can reach: a bound, and a search.

    L* = min_{W1, W2} 1/2 ||Y - W2 s(W1 X)||_F^2  >=  1/2 sum_{i > k} sigma_i(Y)^2

The outputs have rank k at most, so that no loss is below that of the best approximation of rank k
(Eckart and Young 1936). If X has full column rank (N <= n), s(W1 X) can be any k by N matrix,
since s is a bijection, and the bound equals L*. Otherwise L* is larger, and ``least_loss`` searches
for it:

W2 is eliminated (variable projection, Golub and Pereyra 1973). With H = s(Z), Z = W1 X and P the
projection on the orthogonal complement of the rows of H,

    W2 = Y H^+,   L(W1) = 1/2 ||Y P||_F^2,   d(Y P) ~ -W2 (s'(Z) * (dW1 X)) P     (Kaufman 1975)

and Levenberg-Marquardt moves W1: (J^T J + mu d I) dW1 = -grad L, d the mean of the diagonal of
J^T J. A step is accepted if the loss falls (mu / 3) and refused otherwise (4 mu), for each task by
itself. X is replaced by an orthonormal basis V of its rows, X = C V, and W1 by W1 C. The damped
step is then a step in Z, which moves away from the kinks of s; a step in W1 would stall there.

References: Marquardt, SIAM J. Appl. Math. 11 (1963); Golub and Pereyra, SIAM J. Numer. Anal. 10
(1973); Kaufman, BIT 15 (1975).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.base.network import LeakyReLU
from metaopt.base.streams import Stream, uniforms
from metaopt.tasks.regression import TaskBatch

TOGETHER = 64
"""Tasks that are solved side by side: a few (k n)^2 matrices of each are held."""

_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-15, 1e12
_ACCEPTED, _REFUSED = 1 / 3, 4.0


@dataclass(frozen=True)
class Optimum:
    """The best point that was found for each task.

    Attributes:
        loss: the lowest loss, float64 [B].
        gradient_norm: ||dL/dW1||_F with W2 eliminated, over an orthonormal basis of the inputs,
            [B]. It is not 0 if the search ended at a kink of s.
        by_start: the loss from each start, [1 + restarts, B].
    """

    loss: Tensor
    gradient_norm: Tensor
    by_start: Tensor


def rank_bound(tasks: TaskBatch) -> Tensor:
    """1/2 sum_{i > k} sigma_i(Y)^2, float64 [B], k the smallest hidden width: no loss is lower.

    With one hidden layer and X of full column rank this is the lowest loss itself.
    """
    k = min(W.shape[-2] for W in tasks.initial[:-1])
    return 0.5 * torch.linalg.svdvals(tasks.Y.double())[:, k:].square().sum(-1)


def least_loss(tasks: TaskBatch, iterations: int = 300, restarts: int = 0) -> Optimum:
    """The lowest loss that runs of Levenberg-Marquardt find, in float64.

    Args:
        tasks: B tasks with one hidden layer of at most as many units as samples, k <= N.
        iterations: the number of trials of each run.
        restarts: the number of runs that start from normal W1, besides the one from the tasks' own.

    Raises:
        ValueError: if the tasks have other networks.
    """
    if len(tasks.initial) != 2 or tasks.initial[0].shape[-2] > tasks.X.shape[-1]:
        raise ValueError(
            "the search needs one hidden layer of at most as many units as samples, found "
            f"{len(tasks.initial) - 1} hidden of {tasks.initial[0].shape[-2]} units and "
            f"{tasks.X.shape[-1]} samples"
        )
    parts = [
        _search(tasks.select(slice(first, first + TOGETHER)), first, iterations, restarts)
        for first in range(0, tasks.size, TOGETHER)
    ]
    return Optimum(
        torch.cat([part.loss for part in parts]),
        torch.cat([part.gradient_norm for part in parts]),
        torch.cat([part.by_start for part in parts], dim=1),
    )


def _search(tasks: TaskBatch, first: int, iterations: int, restarts: int) -> Optimum:
    """The results from all starts, for the tasks from index ``first`` on."""
    U, singular, V = torch.linalg.svd(tasks.X.double(), full_matrices=False)
    problem = _Projected(V, tasks.Y.double(), tasks.s)
    own = tasks.initial[0].double() @ U * singular[:, None]
    starts = [own, *(_normal(own, restart, first) for restart in range(restarts))]
    ends = [_descend(problem, start, iterations) for start in starts]
    losses = torch.stack([end.loss for end in ends])
    norms = torch.stack([torch.linalg.matrix_norm(problem.gradient(end)) for end in ends])
    best = losses.argmin(0, keepdim=True)
    return Optimum(losses.gather(0, best)[0], norms.gather(0, best)[0], losses)


def _normal(like: Tensor, restart: int, first: int) -> Tensor:
    """Standard normal W1, shaped like ``like`` [B, k, r]; a task's do not depend on the batch."""
    count, k, r = like.shape
    draws = uniforms(Stream.INITIALISATION, restart, first, count, k * r)
    tiny = torch.finfo(torch.float64).tiny
    return (
        torch.special.ndtri(torch.from_numpy(draws).clamp(min=tiny)).to(like).reshape(count, k, r)
    )


class _Point(NamedTuple):
    """W1 [B, k, r], Z = W1 V [B, k, N], H^T = Q R, the error W2 H - Y [B, m, N] and L [B]."""

    W1: Tensor
    Z: Tensor
    Q: Tensor
    R: Tensor
    error: Tensor
    loss: Tensor


@dataclass(frozen=True)
class _Projected:
    """L(W1) = 1/2 ||Y P||_F^2, with orthonormal rows V [B, r, N] as inputs."""

    V: Tensor
    Y: Tensor
    s: LeakyReLU

    def at(self, W1: Tensor) -> _Point:
        """Evaluate the loss, and what gradient and step need, at W1."""
        Z = W1 @ self.V
        Q, R = torch.linalg.qr(self.s(Z).mT)
        error = self.Y @ Q @ Q.mT - self.Y
        return _Point(W1, Z, Q, R, error, 0.5 * error.square().sum(dim=(-2, -1)))

    def W2(self, point: _Point) -> Tensor:
        """Y H^+, from W2 R^T = Y Q."""
        return torch.linalg.solve_triangular(point.R.mT, self.Y @ point.Q, upper=False, left=False)

    def gradient(self, point: _Point) -> Tensor:
        """dL/dW1 = (s'(Z) * W2^T (W2 H - Y)) V^T, [B, k, r]."""
        return (self.s.derivative(point.Z) * (self.W2(point).mT @ point.error)) @ self.V.mT

    def step(self, point: _Point, damping: Tensor) -> Tensor:
        """-(J^T J + mu d I)^-1 grad L, [B, k, r], with mu = ``damping`` [B]."""
        count, k, r = point.W1.shape
        N = self.V.shape[-1]
        W2 = self.W2(point)
        # J takes dW1 to -W2 K, row p of unit p: K = (s'(Z_p) * V) P is that of one unit, [r, N].
        slopes = (self.s.derivative(point.Z)[:, :, None] * self.V[:, None]).reshape(count, k * r, N)
        K = slopes - slopes @ point.Q @ point.Q.mT
        units = (W2.mT @ W2).repeat_interleave(r, 1).repeat_interleave(r, 2)
        normal = (K @ K.mT) * units
        mean = torch.diagonal(normal, dim1=-2, dim2=-1).mean(-1)
        normal.diagonal(dim1=-2, dim2=-1).add_((damping * mean)[:, None])
        # cholesky_ex does not stop at a matrix that rounding made indefinite: its step is refused.
        factor = torch.linalg.cholesky_ex(normal).L
        gradient = self.gradient(point).reshape(count, k * r, 1)
        return -torch.cholesky_solve(gradient, factor).reshape(count, k, r)


def _descend(problem: _Projected, start: Tensor, iterations: int) -> _Point:
    """The point after ``iterations`` trials; the loss of a task never rises."""
    point = problem.at(start)
    damping = torch.full_like(point.loss, _FIRST_DAMPING)
    for _ in range(iterations):
        trial = problem.at(point.W1 + problem.step(point, damping))
        # Written so that NaN is refused.
        accepted = trial.loss < point.loss
        point = _Point(*(_where(accepted, new, old) for new, old in zip(trial, point, strict=True)))
        factor = torch.where(accepted, _ACCEPTED, _REFUSED)
        damping = (damping * factor).clamp(_LEAST_DAMPING, _MOST_DAMPING)
    return point


def _where(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted.reshape(-1, *[1] * (new.dim() - 1)), new, old)
