"""Fixed moves along GL(k) of each pair, after each step of Adam.

    A -> g A,   B -> B g^-1;   G_A -> g^-T G_A,   G_B -> G_B g^T

The network computes the same. Adam's first moments move as gradients do. Its second moments are
entries' squares, which no linear map moves exactly: they are kept where they are, or begin anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studies.lora.hand_made import Adam, Number, Pair

FLOOR = 1e-4
"""Singular values of BA count as at least this share of the largest: the frame stays invertible."""
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
    L = torch.linalg.qr(A.mT)[1].mT
    k = A.shape[-2]
    _, S, Vh = torch.linalg.svd(B @ L, full_matrices=True)
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


class MovedAdam(Adam):
    """Adam, and after each step a move.

    Args:
        pairs: (A, B) of each layer.
        lr: rate.
        move: the element.
        second: what becomes of the second moments: ``kept``, ``anew``, or ``squares``, moved by
            the squares of the entries of what moves a gradient.
    """

    def __init__(
        self, pairs: Sequence[Pair], lr: Number, move: Move, second: str = "kept", **options: Any
    ) -> None:
        super().__init__(pairs, lr, **options)
        self.move = move
        self.second = second
        self.moves = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step, and the move."""
        super().step()
        self.moves += 1
        for A, B in self.pairs:
            g, inverse = self.move(A, B, self.moves)
            self.carry(A, B, g, inverse)

    def carry(self, A: Tensor, B: Tensor, g: Tensor, inverse: Tensor) -> None:
        """Move factors and moments."""
        A.copy_(g @ A)
        B.copy_(B @ inverse)
        of_A, of_B = self.state[A], self.state[B]
        of_A["m"].copy_(inverse.mT @ of_A["m"])
        of_B["m"].copy_(of_B["m"] @ g.mT)
        if self.second == "squares":
            of_A["v"].copy_(inverse.mT.square() @ of_A["v"])
            of_B["v"].copy_(of_B["v"] @ g.mT.square())
        elif self.second == "anew":
            of_A["v"].zero_()
            of_B["v"].zero_()


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
        self.steps = self.steps * goes_on
        for state in self.state.values():
            for moment in state.values():
                moment.mul_(goes_on)
        super().step()


def cosine(step: int, steps: int) -> float:
    """The share of the rate at a step, counted from 0: from 1 down to 0 over ``steps``."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
