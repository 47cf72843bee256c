"""Directions: what the outputs of a learned network are coefficients of.

    f = sum_d c^d D^d,     T = sum_d c^d E^d

The coefficients c come from the network; D (of updates) and E (of generators) are known functions
of one observation. *Shaped* directions are worth one coefficient for a whole layer already;
*sizes* are one number for all entries of a layer, and get their shape from the coefficients.

The update directions vanish with the gradient or with the residual, so that a rule can converge to
rounding and keep what it reached. The generator ``I - H H^T`` of a multiple of H H^T near the
identity is a step of the Newton-Schulz iteration toward ``(H H^T)^{-1/2}``, the element that makes
the problem of the second layer perfectly conditioned: whitening is within reach of two numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metaopt.base.fields import described
from metaopt.base.loss_statistics import FLOOR
from metaopt.base.network import Weights
from metaopt.rules.base import flat_gradient
from metaopt.rules.learned.features import LOG_RANGE, Seen, over_rms, rms, split_generators
from metaopt.rules.rule_config import FreeConfig

FREE_STEP = 0.1
"""Size of the steps that no gradient scales, as a share of the weights; with 1 they are chaotic."""

HEAD_BOUND = 0.01
"""Bound of the initial weights of heads: the untrained rule is near the coefficients of z = 0."""

LARGEST_LOG_STEP = 3.0
"""The largest log of a coefficient of the natural gradient: 10 times the safe step."""

LARGEST_WHITENING = (0.5, 0.2)
"""The largest coefficients of H H^T and of its square."""


@dataclass(frozen=True)
class Directions:
    """The directions at one observation.

    Attributes:
        shaped: the D directions that have one coefficient for each layer, [B, D, entries].
        sizes: the S sizes that have one coefficient for each entry, [B, S, entries].
    """

    shaped: Tensor
    sizes: Tensor


class Basis(ABC):
    """Which directions there are.

    Args:
        free: factor on the sizes: how far outputs move what no direction shapes.

    Attributes:
        shaped: D.
        sizes: S.
        head_bound: the head's first weights are within it, so that the untrained rule is near the
            coefficients of 0; None for the usual bound of a linear layer.
        reads_layers: whether directions are made from the inputs of layers.
        wired: whether features are read beside hidden states: half of the sizes, the first ones,
            are linear maps of them, and what is for layers is a sum of both.
    """

    shaped: ClassVar[int]
    sizes: ClassVar[int]
    head_bound: ClassVar[float | None]
    reads_layers: ClassVar[bool] = True
    wired: ClassVar[bool] = False

    def __init__(self, free: float) -> None:
        self.free = free

    @abstractmethod
    def directions(self, seen: Seen) -> Directions:
        """The directions at an observation."""

    @abstractmethod
    def coefficients(self, z: Tensor) -> Tensor:
        """c of z, the network's outputs for the shaped directions: [B, D, L]."""

    @abstractmethod
    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """The part of a combination that the rule proposes, [B, entries]."""

    def combine(
        self, of_layers: Tensor, of_entries: Tensor, counts: Sequence[int], seen: Seen
    ) -> Tensor:
        """sum_d c^d D^d, [B, entries].

        Args:
            of_layers: outputs of the network for the shaped directions, [B, D, L].
            of_entries: for the sizes, [B, S, entries].
            counts: entries of each of the L layers (or pairs).
            seen: the observation.
        """
        directions = self.directions(seen)
        c = self.coefficients(of_layers)
        parts = directions.shaped.split([*counts], dim=2)
        shaped = [(c[:, :, i, None] * part).sum(1) for i, part in enumerate(parts)]
        total = (of_entries * directions.sizes).sum(1) + torch.cat(shaped, dim=1)
        return self.project(total, seen)


class Entries(Basis):
    """No direction and one size, 1: the outputs themselves, as in arXiv 2305.13404."""

    shaped = 0
    sizes = 1
    head_bound = None
    reads_layers = False

    @abstractmethod
    def count(self, weights: Weights) -> int:
        """The number of entries that the outputs fill."""

    def directions(self, seen: Seen) -> Directions:
        """No shaped direction, and sizes of ``free`` everywhere."""
        W = seen.observation.weights
        batch, entries = W[0].shape[0], self.count(W)
        return Directions(
            W[0].new_empty(batch, 0, entries), W[0].new_full((batch, 1, entries), self.free)
        )

    def coefficients(self, z: Tensor) -> Tensor:
        """z itself; without shaped directions it is empty."""
        return z

    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """The combination itself."""
        return entries


class UpdateEntries(Entries):
    """The outputs of the network are the updates."""

    def count(self, weights: Weights) -> int:
        """P, the number of weights."""
        return sum(W[0].numel() for W in weights)


class GeneratorEntries(Entries):
    """The outputs of the network are the entries of generators."""

    def count(self, weights: Weights) -> int:
        """K, the number of entries of all generators."""
        return sum(W.shape[1] ** 2 for W in weights[:-1])


class NaturalSteps(Basis):
    """Updates. Shaped: the gradient in natural units, N (``Seen.natural``), with c = -exp(z) / 2.

    z = 0 is half of the largest step that is safe in a layer by itself, since layers step together.
    Sizes: the root mean square of N in the layer; and that of its weights times FREE_STEP and
    ||f(w) - Y|| / sqrt(||f(w) - Y||^2 + ||f(w)||^2), the share of the outputs that is wrong,
    or times 0 where that is not known (``Seen.residual_known``).
    Entries without a gradient, such as rows of an embedding that were not looked up, stay.
    """

    shaped = 1
    sizes = 2
    head_bound = HEAD_BOUND

    def directions(self, seen: Seen) -> Directions:
        """N and the sizes."""
        N, W = seen.natural, seen.observation.weights
        free = FREE_STEP * _share(seen)
        sizes = (filled([rms(n) for n in N], N), filled([free * rms(w) for w in W], W))
        shaped = torch.cat([n.flatten(1) for n in N], dim=1)
        return Directions(shaped[:, None], self.free * torch.stack(sizes, dim=1))

    def coefficients(self, z: Tensor) -> Tensor:
        """-exp(z) / 2, at most 10 in size."""
        return -0.5 * z.clamp(max=LARGEST_LOG_STEP).exp()

    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """Entries without a gradient are set to 0."""
        return of_gradient(entries, seen)


class InformedSteps(NaturalSteps):
    """``NaturalSteps``, with two more shaped: N times H H^T, and times its square; c = z.

    S N_l for the first layer of a pair and N_L S for the last of all, S over its Frobenius norm and
    times sqrt(k). What m2 can whiten with, as a preconditioner of the update: the control for
    information.
    """

    shaped = 3

    def directions(self, seen: Seen) -> Directions:
        """N, N times the two, and the sizes."""
        plain = super().directions(seen)
        by_pair = []
        for products in seen.products:
            S = products[:, 0]
            square = over_rms(torch.bmm(S, S))
            by_pair.append(torch.stack([S, square], dim=1) / math.sqrt(S.shape[-1]))
        *before, last = seen.natural
        times = [S @ n[:, None] for S, n in zip(by_pair, before, strict=True)]
        times.append(last[:, None] @ by_pair[-1])
        more = torch.cat([t.flatten(2) for t in times], dim=2)
        return Directions(torch.cat([plain.shaped, more], dim=1), plain.sizes)

    def coefficients(self, z: Tensor) -> Tensor:
        """-exp(z) / 2 for N, and z itself for the two others."""
        return torch.cat([super().coefficients(z[:, :1]), z[:, 1:]], dim=1)


class Whitening(Basis):
    """Generators. Shaped: H H^T and its square, with c = bound tanh(z). Size: the wrong share.

    The k by k directions have the Frobenius norm of the identity, sqrt(k), the size times the share
    of the outputs that is wrong. Near a multiple of the identity a step takes the deviation of an
    eigenvalue of H H^T times 1 + 2 c (1 + 4 c for the square): within the bounds both together
    cannot overshoot by more than there was. A generator is made isometric,

        T - (tr(T H H^T) / tr(H H^T)) I,

    so that ||g H||_F = ||H||_F to first order: the features see no scale, and a rule that cannot
    see it would move it up or down at every step, until it overflows.
    """

    shaped = 2
    sizes = 1
    head_bound = HEAD_BOUND

    def directions(self, seen: Seen) -> Directions:
        """Two directions and the size."""
        share = _share(seen)
        shaped, sizes = [], []
        for products in seen.products:
            HHt = products[:, 0]
            root = math.sqrt(HHt.shape[-1])
            square = over_rms(torch.bmm(HHt, HHt))
            shaped.append((torch.stack([HHt, square], dim=1) / root).flatten(2))
            sizes.append((share / root).expand_as(HHt)[:, None].flatten(2))
        return Directions(torch.cat(shaped, dim=2), self.free * torch.cat(sizes, dim=2))

    def coefficients(self, z: Tensor) -> Tensor:
        """tanh(z), within LARGEST_WHITENING."""
        bounds = [torch.full_like(z[:, :1], bound) for bound in LARGEST_WHITENING]
        return torch.cat(bounds, dim=1) * torch.tanh(z)

    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """The isometric part of the generators (see the class)."""
        return joined(isometric(entries, seen))


def of_gradient(entries: Tensor, seen: Seen) -> Tensor:
    """The entries of updates, [B, P], 0 where there is no gradient."""
    return torch.where(flat_gradient(seen.observation) == 0, 0.0, entries)


def isometric(entries: Tensor, seen: Seen) -> list[Tensor]:
    """T - (tr(T H H^T) / tr(H H^T)) I, each [B, k, k], for the generators T of entries [B, K]."""
    parts = split_generators(entries, seen.observation)
    each = zip(parts, seen.products, strict=True)
    return [_isometric(T, products[:, 0]) for T, products in each]


def joined(generators: Sequence[Tensor]) -> Tensor:
    """The entries, [B, K], of generators [B, k, k]."""
    return torch.cat([T.flatten(1) for T in generators], dim=1)


def _isometric(T: Tensor, S: Tensor) -> Tensor:
    """T - (tr(T S) / tr(S)) I, for S symmetric: [B, k, k]."""
    growth = (T * S).sum(dim=(-2, -1), keepdim=True)
    trace = torch.diagonal(S, dim1=-2, dim2=-1).sum(-1)[:, None, None]
    identity = torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)
    return T - growth / (trace + FLOOR) * identity


def _share(seen: Seen) -> Tensor:
    """The share of the outputs that is wrong, in [0, 1], as [B, 1, 1]; 0 if it is not known.

    A step of this size shrinks as the outputs become right. If their share is not known, nothing
    would make the step shrink, so it is left out.
    """
    share = (seen.log_residual * (LOG_RANGE / 2)).exp()[:, None, None]
    return share if seen.residual_known else torch.zeros_like(share)


def filled(sizes: list[Tensor], like: Weights) -> Tensor:
    """Each layer's number, [B, 1, 1], repeated for all entries of the layer: [B, P]."""
    parts = (size.expand_as(W).flatten(1) for size, W in zip(sizes, like, strict=True))
    return torch.cat([*parts], dim=1)


UPDATE_BASES: dict[str, type[Basis]] = {"entries": UpdateEntries, "directions": NaturalSteps}
GENERATOR_BASES: dict[str, type[Basis]] = {"entries": GeneratorEntries, "directions": Whitening}


class BasisConfig(FreeConfig):
    """The fields of rules whose outputs may be coefficients of known directions."""

    basis: Literal["entries", "sized", "directions"] = described(
        "directions",
        "what the outputs of the network are: the entries themselves; entries times a size of each "
        "layer (`coordinate_lstm` alone); or coefficients of known directions (natural steps for "
        "updates, powers of H H^T for generators)",
    )
