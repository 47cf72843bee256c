"""Directions: what the outputs of a learned network are coefficients of.

    f = sum_d c^d D^d,     T = sum_d c^d E^d

The coefficients c come from the network; D (of updates) and E (of generators) are known functions
of one observation. *Shaped* directions are worth one coefficient for a whole layer already;
*sizes* are one number for all entries of a layer, and get their shape from the coefficients.

The update directions vanish with the gradient or with the residual, so that a rule can converge to
rounding and keep what it reached. The generator ``I - H H^T`` of a multiple of H H^T near the
identity is a step of the Newton-Schulz iteration toward ``(H H^T)^{-1/2}``, the element that makes
the problem of the second layer perfectly conditioned: whitening is within reach of three numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaopt.network import Weights
from metaopt.rules.features import LOG_RANGE, Seen, over_rms, rms

FREE_STEP = 0.1
"""Steps whose size is not the gradient's are of this share of the weights; 1 is chaotic."""


@dataclass(frozen=True)
class Directions:
    """Directions at one observation.

    Attributes:
        shaped: [B, D, entries].
        sizes: [B, S, entries].
    """

    shaped: Tensor
    sizes: Tensor


class Basis(ABC):
    """Which directions there are.

    Attributes:
        start: the coefficients of the shaped ones near which an untrained rule is.
        sizes: S.
        head_bound: the head's first weights are within it, so that the untrained rule stays near
            its start; None where it has none.
    """

    start: ClassVar[tuple[float, ...]]
    sizes: ClassVar[int]
    head_bound: ClassVar[float | None]

    @abstractmethod
    def __call__(self, seen: Seen) -> Directions:
        """The directions at an observation."""


class UpdateEntries(Basis):
    """The outputs are the updates themselves, as in arXiv 2305.13404."""

    start = ()
    sizes = 1
    head_bound = None

    def __call__(self, seen: Seen) -> Directions:
        """One size, 1."""
        return _entries([W[0].numel() for W in seen.observation.weights], seen)


class GeneratorEntries(Basis):
    """The outputs are the generators themselves, as in arXiv 2305.13404."""

    start = ()
    sizes = 1
    head_bound = None

    def __call__(self, seen: Seen) -> Directions:
        """One size, 1."""
        return _entries([W.shape[1] ** 2 for W in seen.observation.weights[:-1]], seen)


def _entries(counts: list[int], seen: Seen) -> Directions:
    W = seen.observation.weights[0]
    shape = (W.shape[0], 1, sum(counts))
    return Directions(W.new_empty(shape[0], 0, shape[2]), W.new_ones(()).expand(shape))


class NaturalSteps(Basis):
    """Shaped: the gradient in natural units, N (``Seen.natural``).

    Sizes: the root mean square of N in the layer; and that of its weights times
    ||f(w) - Y|| / sqrt(||f(w) - Y||^2 + ||f(w)||^2), the share of the outputs that is wrong, and
    FREE_STEP.
    """

    # Half the largest safe step, since several layers step at once.
    start = (-0.5,)
    sizes = 2
    head_bound = 0.01

    def __call__(self, seen: Seen) -> Directions:
        """N and the sizes."""
        N, W = seen.natural, seen.observation.weights
        sizes = (
            _filled([rms(n) for n in N], N),
            _filled([FREE_STEP * _share(seen) * rms(w) for w in W], W),
        )
        shaped = torch.cat([n.flatten(1) for n in N], dim=1)
        return Directions(shaped[:, None], torch.stack(sizes, dim=1))


class Whitening(Basis):
    """Shaped: H H^T, its square and the identity. Size: the share of the outputs that is wrong.

    All k by k directions have the Frobenius norm of the identity, sqrt(k), the size times that
    share.
    """

    start = (0.0, 0.0, 0.0)
    sizes = 1
    head_bound = 0.01

    def __call__(self, seen: Seen) -> Directions:
        """Three directions and the size."""
        share = _share(seen)
        shaped, sizes = [], []
        for products in seen.products:
            HHt = products[:, 0]
            k = HHt.shape[-1]
            unit = torch.stack([HHt, over_rms(torch.bmm(HHt, HHt))], dim=1) / math.sqrt(k)
            identity = torch.eye(k, dtype=HHt.dtype, device=HHt.device).expand(len(HHt), 1, k, k)
            shaped.append(torch.cat([unit, identity], dim=1).flatten(2))
            sizes.append((share / math.sqrt(k)).expand_as(HHt)[:, None].flatten(2))
        return Directions(torch.cat(shaped, dim=2), torch.cat(sizes, dim=2))


def _share(seen: Seen) -> Tensor:
    """The share of the outputs that is wrong, in [0, 1]: [B, 1, 1]."""
    return (seen.log_residual * (LOG_RANGE / 2)).exp()[:, None, None]


def _filled(sizes: list[Tensor], like: Weights) -> Tensor:
    """One number [B, 1, 1] a layer, for each of its entries: [B, P]."""
    parts = (size.expand_as(W).flatten(1) for size, W in zip(sizes, like, strict=True))
    return torch.cat([*parts], dim=1)
