"""Limits on the norm of generators, which keep the group element near the identity.

Each limit has ``max_norm``, the largest norm of what it returns. The exponential map chooses its
number of squarings from it beforehand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


def frobenius_norm(T: Tensor) -> Tensor:
    """||T||_F [B] of T [B, k, k], with derivative 0 (not NaN) at T = 0."""
    squares = T.square().sum(dim=(-2, -1))
    is_zero = squares == 0
    # The inner where keeps d sqrt / dx away from 0, where it is infinite.
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squares).sqrt())


class NormLimit(ABC):
    """T [B, k, k] -> a generator with ||T||_F <= max_norm."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    @abstractmethod
    def __call__(self, T: Tensor) -> Tensor:
        """The limited generator [B, k, k]."""


class BoundedNorm(NormLimit):
    """T / sqrt(1 + ||T||_F^2 / c^2): about T if T is small, and always shorter than c.

    Args:
        max_norm: c.
    """

    def __call__(self, T: Tensor) -> Tensor:
        """The limited generator [B, k, k]."""
        squares = T.square().sum(dim=(-2, -1), keepdim=True)
        return T * torch.rsqrt(1 + squares / self.max_norm**2)


class CappedNorm(NormLimit):
    """T min(1, c / ||T||_F): T up to norm c, and of norm c beyond it.

    Args:
        max_norm: c.
    """

    def __call__(self, T: Tensor) -> Tensor:
        """The limited generator [B, k, k]."""
        norm = frobenius_norm(T)[:, None, None]
        return T * (self.max_norm / norm.clamp(min=self.max_norm))


class FixedNorm(NormLimit):
    """c T / ||T||_F: always of norm c, as in the paper (c = 0.01 there); 0 stays 0.

    Args:
        max_norm: c.
    """

    def __call__(self, T: Tensor) -> Tensor:
        """The scaled generator [B, k, k]."""
        norm = frobenius_norm(T)[:, None, None]
        return T * (self.max_norm / torch.where(norm == 0, 1.0, norm))
