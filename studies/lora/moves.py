"""Fixed moves along GL(k) of each pair, after each step of Adam.

    A -> g A,   B -> B g^-1;   G_A -> g^-T G_A,   G_B -> G_B g^T

The network computes the same. Adam's first moments move as gradients do. Its second moments are
entries' squares, which no linear map moves exactly: they are moved by the squares of its entries,
or kept where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from studies.lora.hand_made import Adam, Number, Pair

FLOOR = 1e-4
"""Singular values of BA count as at least this share of the largest: the frame stays invertible."""
HUGE = 1e6
"""Factors above it have diverged."""
Element = tuple[Tensor, Tensor]
"""g and its inverse, [.., k, k]."""
Move = Callable[[Tensor, Tensor, int], Element]
"""The element for factors A, B after a step; steps count from 1."""


def frame(A: Tensor, B: Tensor, power: float) -> Element:
    """The element to A' = S^power V^T, B' = U S^(1 - power), for BA = U S V^T.

    With power 0 the rows of A' are orthonormal, with 1 the columns of B', with 1/2 the factors
    are balanced: A' A'^T = B'^T B'. Where BA has fewer than k singular values, or tiny ones, the
    element takes others for them and is exact all the same.

    Args:
        A: [.., k, in], of full row rank.
        B: [.., out, k].
        power: between 0 and 1.
    """
    k = A.shape[-2]
    # A member that has diverged must not stop the others.
    alive = (A.abs().amax((-2, -1)) < HUGE) & (B.abs().amax((-2, -1)) < HUGE)
    alive = alive[..., None, None]
    L = torch.linalg.qr(A.where(alive, torch.eye(k, A.shape[-1]).to(A)).mT)[1].mT
    _, S, Vh = torch.linalg.svd(B.where(alive, 0.0) @ L, full_matrices=True)
    S = torch.nn.functional.pad(S[..., :k], (0, k - S.shape[-1]))
    # Of a product that is zero, any frame is one.
    top = torch.where(S[..., :1] > 0, S[..., :1], torch.ones(()).to(S))
    size = (S / top).clamp_min(FLOOR) * top
    size = torch.where(S[..., :1] > 0, size, torch.ones(()).to(S)) ** power
    # g = size V^T L^-1, by the triangle.
    g = size[..., None] * torch.linalg.solve_triangular(L, Vh, upper=False, left=False)
    return g, (L @ Vh.mT) / size[..., None, :]


def balanced(A: Tensor, B: Tensor, step: int) -> Element:
    """To the balanced frame."""
    return frame(A, B, 0.5)


def orthonormal(A: Tensor, B: Tensor, step: int) -> Element:
    """To that in which A is orthonormal."""
    return frame(A, B, 0.0)


def in_turn(A: Tensor, B: Tensor, step: int) -> Element:
    """A orthonormal after odd steps, B after even ones."""
    return frame(A, B, 0.0 if step % 2 else 1.0)


class RandomElements:
    """g = exp(T), T normal of a given Frobenius norm.

    Args:
        norm: of T.
        seed: of the draws.
    """

    def __init__(self, norm: Number, seed: int = 0) -> None:
        self.norm = norm
        self._draws = np.random.Generator(np.random.Philox(seed))

    def __call__(self, A: Tensor, B: Tensor, step: int) -> Element:
        """The element of a step."""
        k = A.shape[-2]
        draws = self._draws.standard_normal((*A.shape[:-2], k, k))
        T = torch.from_numpy(draws).to(A)
        T = T * self.norm / torch.linalg.matrix_norm(T, keepdim=True)
        return torch.matrix_exp(T), torch.matrix_exp(-T)


def kept(v: Tensor, C: Tensor) -> Tensor:
    """Second moments stay where they are."""
    return v


def by_squares(v: Tensor, C: Tensor) -> Tensor:
    """v -> (C * C) v: exact where C is a scaling or a permutation of the frame."""
    return C.square() @ v


class MovedAdam(Adam):
    """Adam, and after each step a move.

    Args:
        pairs: (A, B) of each layer.
        lr: rate.
        move: the element.
        second: what becomes of second moments v, [.., k, n], where gradients are moved by C.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        lr: Number,
        move: Move,
        second: Callable[[Tensor, Tensor], Tensor] = by_squares,
    ) -> None:
        super().__init__(pairs, lr)
        self.move = move
        self.second = second
        self.moves = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step, and the move."""
        super().step()
        self.moves += 1
        for A, B in self.pairs:
            self._carry(A, B, *self.move(A, B, self.moves))

    def _carry(self, A: Tensor, B: Tensor, g: Tensor, inverse: Tensor) -> None:
        A.copy_(g @ A)
        B.copy_(B @ inverse)
        of_A, of_B = self.state[A], self.state[B]
        of_A["m"].copy_(inverse.mT @ of_A["m"])
        of_B["m"].copy_(of_B["m"] @ g.mT)
        of_A["v"].copy_(self.second(of_A["v"], inverse.mT))
        of_B["v"].copy_(self.second(of_B["v"].mT, g).mT)


class ResetAdam(Adam):
    """Adam whose state begins anew every so many steps, and nothing moves.

    Args:
        pairs: (A, B) of each layer.
        lr: rate.
        every: steps, for all members or for each.
    """

    def __init__(self, pairs: Sequence[Pair], lr: Number, every: Number) -> None:
        super().__init__(pairs, lr)
        self.every = every

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step, after a reset where it is time."""
        goes_on = torch.as_tensor(self.steps % self.every != 0)
        # In float64: what corrects the bias of a young second moment is a thousandth.
        self.steps = self.steps * goes_on.double()
        for state in self.state.values():
            for moment in state.values():
                moment.mul_(goes_on)
        super().step()
