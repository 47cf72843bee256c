"""What a running mean of gradients of one matrix is made into before it is a step.

    orthogonal    sqrt(max(out, rest)) (U V^T),   m = U S V^T      all singular values alike (Muon)
    normalised    m / rms(m)                                       the mean itself, of unit size
    both          the steps of both kinds, side by side

The steps have entries of root mean square about 1, read nothing but m, and keep nothing: no mean of
squares, entry by entry, that could not follow where a teleport mixes entries.

References:
    Jordan et al., Muon (2024); Cutkosky and Mehta, Momentum improves normalized SGD (2020).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from metaopt.rules.learned.spectral import polar

TINY = 1e-24
"""Added under roots: its power -3/2, the slope there, is still a number in float32."""


class MatrixSteps(ABC):
    """m [B, any, out, rest] of several matrices -> steps [B, kinds x any, out, rest].

    Attributes:
        kinds: how many steps are made of each mean; all of the first kind come first.
    """

    kinds: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, means: Sequence[Tensor]) -> list[Tensor]:
        """The steps of unit size; 0 for a mean that is 0."""


class Normalised(MatrixSteps):
    """m / rms(m)."""

    def __call__(self, means: Sequence[Tensor]) -> list[Tensor]:
        """The means, each at unit size."""
        return [unit(m) for m in means]


def unit(m: Tensor) -> Tensor:
    """m / rms(m)."""
    return m * (m.square().mean(dim=(-2, -1), keepdim=True) + TINY).rsqrt()


class Orthogonal(MatrixSteps):
    """sqrt(max(out, rest)) (m m^T)^(-1/2) m, on the shorter side.

    Args:
        iterations: see ``polar``.
    """

    def __init__(self, iterations: int = 7) -> None:
        self.iterations = iterations

    def __call__(self, means: Sequence[Tensor]) -> list[Tensor]:
        """The means, with all singular values alike; matrices of equal short side go together."""
        tall = [m if m.shape[-2] >= m.shape[-1] else m.mT for m in means]
        wide = [i for i, m in enumerate(tall) if m.shape[-1] > 1]
        roots = polar_of([tall[i].mT @ tall[i] for i in wide], self.iterations)
        # Of a single row or column the polar factor is its direction.
        steps = [
            unit(m) if tall_m.shape[-1] == 1 else m for m, tall_m in zip(means, tall, strict=True)
        ]
        for i, root in zip(wide, roots, strict=True):
            step = tall[i] @ root * tall[i].shape[-2] ** 0.5
            steps[i] = step if tall[i] is means[i] else step.mT
        return steps


class Both(MatrixSteps):
    """The orthogonal steps, and after them the means at unit size."""

    kinds = 2

    def __init__(self) -> None:
        self.each = (Orthogonal(), Normalised())

    def __call__(self, means: Sequence[Tensor]) -> list[Tensor]:
        """The steps of both kinds, along the axis of the means."""
        made = (steps(means) for steps in self.each)
        return [torch.cat(own, dim=1) for own in zip(*made, strict=True)]


def polar_of(grams: Sequence[Tensor], iterations: int) -> list[Tensor]:
    """``polar`` of each of some matrices [.., k, k]; those of equal size go together."""
    by_width: dict[int, list[int]] = {}
    for i, gram in enumerate(grams):
        by_width.setdefault(gram.shape[-1], []).append(i)
    roots = list(grams)
    for own in by_width.values():
        if len(own) == 1:
            roots[own[0]] = polar(grams[own[0]], iterations)
            continue
        together = polar(torch.stack([grams[i] for i in own]), iterations)
        for i, root in zip(own, together.unbind(), strict=True):
            roots[i] = root
    return roots
