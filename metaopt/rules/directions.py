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
from metaopt.rules.features import LOG_RANGE, Seen, over_rms, rms, split_generators
from metaopt.statistics import FLOOR

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

    def coefficients(self, z: Tensor) -> Tensor:
        """Coefficients of the shaped directions, [B, D, ..], of the head's outputs for them."""
        return z

    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """What is kept of a combination, [B, entries]: all of it, unless a basis says otherwise."""
        return entries


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
    start = (0.0,)
    sizes = 2
    head_bound = 0.01

    def coefficients(self, z: Tensor) -> Tensor:
        return -0.5 * z.clamp(max=3.0).exp()

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
    """Shaped: H H^T and its square. Size: the share of the outputs that is wrong.

    The k by k directions have the Frobenius norm of the identity, sqrt(k), the size times that
    share. A generator is made isometric,

        T - (tr(T H H^T) / tr(H H^T)) I,

    so that to first order ||g H||_F = ||H||_F: the features see no scale, and a rule that cannot see
    it would move it up or down at every step until it overflows.
    """

    start = (0.0, 0.0)
    sizes = 1
    head_bound = 0.01

    def coefficients(self, z: Tensor) -> Tensor:
        bound = z.new_tensor([0.5, 0.2]).view(2, *[1] * (z.dim() - 2))
        return bound * torch.tanh(z)

    def __call__(self, seen: Seen) -> Directions:
        """Two directions and the size."""
        share = _share(seen)
        shaped, sizes = [], []
        for products in seen.products:
            HHt = products[:, 0]
            root = math.sqrt(HHt.shape[-1])
            square = over_rms(torch.bmm(HHt, HHt))
            shaped.append((torch.stack([HHt, square], dim=1) / root).flatten(2))
            sizes.append((share / root).expand_as(HHt)[:, None].flatten(2))
        return Directions(torch.cat(shaped, dim=2), torch.cat(sizes, dim=2))

    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """The isometric part of generators, [B, K]."""
        parts = split_generators(entries, seen.observation)
        return torch.cat(
            [
                _isometric(T, products[:, 0]).flatten(1)
                for T, products in zip(parts, seen.products, strict=True)
            ],
            dim=1,
        )


def _isometric(T: Tensor, S: Tensor) -> Tensor:
    """T - (tr(T S) / tr(S)) I, for S symmetric: [B, k, k]."""
    growth = (T * S).sum(dim=(-2, -1), keepdim=True)
    trace = torch.diagonal(S, dim1=-2, dim2=-1).sum(-1)[:, None, None]
    identity = torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)
    return T - growth / (trace + FLOOR) * identity


def _share(seen: Seen) -> Tensor:
    """The share of the outputs that is wrong, in [0, 1]: [B, 1, 1]."""
    return (seen.log_residual * (LOG_RANGE / 2)).exp()[:, None, None]


def _filled(sizes: list[Tensor], like: Weights) -> Tensor:
    """One number [B, 1, 1] a layer, for each of its entries: [B, P]."""
    parts = (size.expand_as(W).flatten(1) for size, W in zip(sizes, like, strict=True))
    return torch.cat([*parts], dim=1)
