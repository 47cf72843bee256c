"""Directions for mini-batches, made of running means in the frame of a matrix.

    adam          m / root                              Adam in the eigenbasis: SOAP
    orthogonal    sqrt(max(out, rest)) U V^T             all singular values alike: Muon
    sign          m / sqrt(m^2 + rms(m)^2 / 100)         nearly the sign of each entry: Lion

m are running means of the gradient and root the root of a running mean of its squares. The last two
are multiplied by the root mean square of the first (``follows``), so that all have entries of the
size of Adam's, about 1 where gradients agree and smaller where they are noise that cancels: what
mixes them says how they point and not how far they go. Multiplying by rotations of the frame on
both sides makes steps of them; U V^T is the same in every frame, so that it may be made in this
one.

References:
    Kingma and Ba, Adam (2015). Vyas et al., SOAP (2024). Jordan et al., Muon (2024).
    Chen et al., Symbolic discovery of optimization algorithms (2023), for Lion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.rules.learned.matrix_steps import TINY, Orthogonal

ROUNDS = 5
"""Iterations of Newton and Schulz: as in Muon singular values come out roughly alike."""
BLOCK = 128
"""Matrices whose shorter side is longer are made orthogonal block by block. In its frame, what
belongs to different eigenvalues is nearly orthogonal already."""
SOFT = 0.01
"""The share of rms(m)^2 below which an entry's sign is not told."""


@dataclass(frozen=True)
class Means:
    """What directions are made of, each parameter in its frame.

    Attributes:
        m: running means of the gradient, [B, n, out, rest] of each parameter.
        g: the gradients, [B, 1, out, rest].
        adam: the means and the gradient over the root, [B, n + 1, out, rest].
        starts: for each parameter what corrects each of its means for its start at 0.
    """

    m: Sequence[Tensor]
    g: Sequence[Tensor]
    adam: Sequence[Tensor]
    starts: Sequence[tuple[float, ...]]


class Direction(ABC):
    """Rows of steps."""

    @abstractmethod
    def untrained(self, means: int) -> Sequence[float]:
        """The share of each row in the untrained mixture, with so many running means."""

    @abstractmethod
    def follows(self, means: int) -> int | None:
        """The row of ``Means.adam`` whose size those of this direction are given; None: Adam's."""

    @abstractmethod
    def __call__(self, means: Means) -> Sequence[Tensor]:
        """The rows of each parameter, [B, rows, out, rest]; of size 1 if they follow."""


class Adam(Direction):
    """Every mean, and the gradient, over the root."""

    def untrained(self, means: int) -> Sequence[float]:
        """The fastest mean alone."""
        return (0.5, *[0.0] * means)

    def follows(self, means: int) -> None:
        """Nothing: it is Adam itself."""

    def __call__(self, means: Means) -> Sequence[Tensor]:
        """m / root."""
        return means.adam


class OrthogonalStep(Direction):
    """The mean of the fastest mean and the gradient, with all singular values alike."""

    def untrained(self, means: int) -> Sequence[float]:
        """As much as of Adam."""
        return (0.5,)

    def follows(self, means: int) -> int:
        """The fastest mean."""
        return 0

    def __init__(self) -> None:
        self._orthogonal = Orthogonal(ROUNDS)

    def __call__(self, means: Means) -> list[Tensor]:
        """sqrt(max(out, rest)) U V^T."""
        each = zip(means.m, means.g, means.starts, strict=True)
        blocks = [_in_blocks(torch.add(g, m[:, :1], alpha=1 / start[0])) for m, g, start in each]
        made = iter(self._orthogonal([block for own in blocks for block in own]))
        return [
            next(made) if len(own) == 1 else torch.cat([next(made) for _ in own], dim=_shorter(g))
            for own, g in zip(blocks, means.g, strict=True)
        ]


def _shorter(m: Tensor) -> int:
    return -2 if m.shape[-2] <= m.shape[-1] else -1


def _in_blocks(m: Tensor) -> list[Tensor]:
    """[.., out, rest] along its shorter side, in the fewest equal parts of at most ``BLOCK``."""
    shorter = _shorter(m)
    return list(m.tensor_split(-(-m.shape[shorter] // BLOCK), dim=shorter))


class Sign(Direction):
    """Nearly the sign of the slowest mean."""

    def untrained(self, means: int) -> Sequence[float]:
        """What the network takes of it alone."""
        return (0.0,)

    def follows(self, means: int) -> int:
        """The slowest mean."""
        return means - 1

    def __call__(self, means: Means) -> list[Tensor]:
        """m / sqrt(m^2 + rms(m)^2 / 100)."""
        found = []
        for means_of_one in means.m:
            m = means_of_one[:, -1:]
            square = m.square()
            soft = SOFT * square.mean(dim=(-2, -1), keepdim=True)
            found.append(m * (square + soft + TINY).rsqrt())
        return found


DIRECTIONS: dict[str, type[Direction]] = {
    "adam": Adam,
    "orthogonal": OrthogonalStep,
    "sign": Sign,
}
"""By name."""
