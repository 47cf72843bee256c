"""Directions for mini-batches, made of running means in the frame of a matrix.

    adam          m / root                              Adam in the eigenbasis: SOAP
    orthogonal    rms(adam) sqrt(max(out, rest)) U V^T   all singular values alike: Muon
    sign          rms(adam) m / sqrt(m^2 + rms(m)^2 / 100)    nearly the sign of each entry: Lion

m are running means of the gradient, corrected for their start, and root the root of a running
mean of its squares. All three have entries of the size of Adam's, about 1 where gradients agree
and smaller where they are noise that cancels, so that what mixes them says how they point and not
how far they go. Multiplying by rotations of the frame on both sides makes steps of them; U V^T is
the same in every frame, so that it may be made in this one.

References:
    Kingma and Ba, Adam (2015). Vyas et al., SOAP (2024). Jordan et al., Muon (2024).
    Chen et al., Symbolic discovery of optimization algorithms (2023), for Lion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaopt.rules.learned.matrix_steps import TINY, Orthogonal

ROUNDS = 5
"""Iterations of Newton and Schulz: as in Muon singular values come out roughly alike."""
SOFT = 0.01
"""The share of rms(m)^2 below which an entry's sign is not told."""


@dataclass(frozen=True)
class Means:
    """What directions of one parameter are made of, in its frame.

    Attributes:
        m: running means of the gradient, the fastest first, and the gradient: [B, n, out, rest].
        root: the root of the mean of squares, [B, 1, out, rest].
    """

    m: Tensor
    root: Tensor

    @property
    def adam(self) -> Tensor:
        """m / root, [B, n, out, rest]."""
        return self.m / self.root


class Direction(ABC):
    """Rows of steps, all of the size of Adam's.

    Attributes:
        untrained: the share of each row in the untrained mixture.
    """

    untrained: ClassVar[tuple[float, ...]]

    @abstractmethod
    def __call__(self, means: Sequence[Means], adam: Sequence[Tensor]) -> list[Tensor]:
        """The rows of each parameter, [B, rows, out, rest].

        Args:
            means: of each parameter.
            adam: m / root of each, [B, n, out, rest].
        """


class Adam(Direction):
    """Every mean, and the gradient, over the root."""

    untrained = (0.5, 0.0, 0.0)

    def __call__(self, means: Sequence[Means], adam: Sequence[Tensor]) -> list[Tensor]:
        """m / root."""
        return list(adam)


class OrthogonalStep(Direction):
    """The mean of the fastest mean and the gradient, with all singular values alike."""

    untrained = (0.5,)

    def __init__(self) -> None:
        self._orthogonal = Orthogonal(ROUNDS)

    def __call__(self, means: Sequence[Means], adam: Sequence[Tensor]) -> list[Tensor]:
        """rms(adam) sqrt(max(out, rest)) U V^T."""
        mixed = [(own.m[:, :1] + own.m[:, -1:]) / 2 for own in means]
        made = self._orthogonal(mixed)
        return [size(one[:, :1]) * step for step, one in zip(made, adam, strict=True)]


class Sign(Direction):
    """Nearly the sign of the slowest mean."""

    untrained = (0.0,)

    def __call__(self, means: Sequence[Means], adam: Sequence[Tensor]) -> list[Tensor]:
        """rms(adam) m / sqrt(m^2 + rms(m)^2 / 100)."""
        found = []
        for own, one in zip(means, adam, strict=True):
            m = own.m[:, -2:-1]
            square = m.square()
            soft = SOFT * square.mean(dim=(-2, -1), keepdim=True)
            found.append(size(one[:, -2:-1]) * m * (square + soft + TINY).rsqrt())
        return found


def size(steps: Tensor) -> Tensor:
    """The root mean square of all entries, [B, any, 1, 1]."""
    return (steps.square().mean(dim=(-2, -1), keepdim=True) + TINY).sqrt()


def mixed(rows: Tensor, shares: Tensor) -> Tensor:
    """sum_r a_r d_r: rows [B, r, out, rest] and shares [B, r] -> [B, out, rest]."""
    out, rest = rows.shape[2:]
    return torch.bmm(shares[:, None], rows.flatten(2)).unflatten(2, (out, rest))[:, 0]


DIRECTIONS: dict[str, type[Direction]] = {
    "adam": Adam,
    "orthogonal": OrthogonalStep,
    "sign": Sign,
}
"""By name."""
