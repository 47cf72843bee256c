"""Maps from a generator T of the Lie algebra to a group element g and its inverse.

    Exponential  g = exp(T),                          g^-1 = exp(-T)
    Cayley       g = (I - T/2)^-1 (I + T/2),          g^-1 = (I + T/2)^-1 (I - T/2)
    FirstOrder   g = I + T,                           "g^-1" = I - T

The first two are exact pairs. ``FirstOrder`` is what the code published with arXiv 2305.13404 does:
its two matrices multiply to I - T^2, not I, so that the loss changes by O(||T||^2). No map waits
for the device: degrees and numbers of squarings are chosen beforehand.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class GroupElement(NamedTuple):
    """A group element g and its inverse, both [B, k, k]."""

    g: Tensor
    g_inv: Tensor


class ElementMap(ABC):
    """T [B, k, k] -> (g, g^-1), differentiable."""

    @abstractmethod
    def __call__(self, T: Tensor) -> GroupElement:
        """The element of a generator [B, k, k]."""


def _identity_like(T: Tensor) -> Tensor:
    return torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)


@lru_cache
def _taylor_terms(order: int, width: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """I / (2j)! above I / (2j + 1)!, [2 width, width], for 2j = order - 2, order - 4, .., 0."""
    identity = torch.eye(width, dtype=dtype, device=device)
    return [
        torch.cat([identity / math.factorial(power), identity / math.factorial(power + 1)])
        for power in range(order - 2, -1, -2)
    ]


class Exponential(ElementMap):
    """g = exp(T) by scaling and squaring of the even and odd parts of the Taylor series.

        exp(+-A) = cosh A +- sinh A,   A = T / 2^s,   exp(T) = exp(A)^(2^s)

    g and g^-1 share the even and odd parts. In float32 ||A|| <= 1/2 and the first dropped term is
    A^10 / 10!, below 3e-10; in float64 ||A|| <= 1/4 and A^14 / 14!, below 5e-20.

    Args:
        max_norm: the largest Frobenius norm that T will have; it fixes s beforehand. For a larger T
            the result loses accuracy gradually.

    References:
        Higham, Functions of Matrices (2008), chapter 10.
    """

    _ORDER_AND_RADIUS: ClassVar = {torch.float32: (10, 0.5), torch.float64: (14, 0.25)}

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def __call__(self, T: Tensor) -> GroupElement:
        """The element of T [B, k, k]."""
        order, radius = self._ORDER_AND_RADIUS[T.dtype]
        squarings = max(0, math.ceil(math.log2(self.max_norm / radius)))
        A = T * 2.0**-squarings if squarings else T
        A2 = torch.bmm(A, A)
        # Horner's rule in A^2 for sum A^(2j) / (2j)! and sum A^(2j) / (2j+1)!, both at once.
        first, *others = _taylor_terms(order, T.shape[-1], T.dtype, T.device)
        sums = first.expand(T.shape[0], -1, -1)
        for terms in others:
            sums = torch.baddbmm(terms, sums, A2)
        even, odd = sums.chunk(2, dim=1)
        odd = torch.bmm(odd, A)
        both = torch.cat([even + odd, even - odd])
        for _ in range(squarings):
            both = torch.bmm(both, both)
        return GroupElement(*both.chunk(2))


class Cayley(ElementMap):
    """g = (I - T/2)^-1 (I + T/2), with its exact inverse; orthogonal if T is skew.

    +-2 must not be an eigenvalue of T, which ||T|| < 2 ensures.
    """

    def __call__(self, T: Tensor) -> GroupElement:
        """The element of T [B, k, k]."""
        identity = _identity_like(T)
        plus, minus = identity + T / 2, identity - T / 2
        # solve_ex does not check for singularity, hence does not wait for the device.
        g = torch.linalg.solve_ex(minus, plus).result
        g_inv = torch.linalg.solve_ex(plus, minus).result
        return GroupElement(g, g_inv)


class FirstOrder(ElementMap):
    """g = I + T, with I - T as its inverse: the paper's pair, inexact by T^2."""

    def __call__(self, T: Tensor) -> GroupElement:
        """The pair of T [B, k, k]."""
        identity = _identity_like(T)
        return GroupElement(identity + T, identity - T)


def permutation(order: Tensor, dtype: torch.dtype = torch.float32) -> GroupElement:
    """The permutation matrices P with (P z)_i = z_{order_i}, and their transposes.

    Args:
        order: int64 [B, k], each row a permutation of 0 .. k - 1.
        dtype: the dtype of the matrices [B, k, k].
    """
    P = torch.nn.functional.one_hot(order, order.shape[-1]).to(dtype)
    return GroupElement(P, P.mT)
