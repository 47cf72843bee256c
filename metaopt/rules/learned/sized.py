"""Entries with sizes of their own: outputs that fill any direction, over many orders of magnitude.

    f = rms(N_l) E                      updates; N_l is the natural step of layer l
    T = within(r, sqrt(q / k) E)        generators of pair l, k by k, made isometric before
    E = free (exp(p z) (v . x + b) + exp(p z') (v' . h + b'))

x are the features of an entry and h is its hidden state. Each of the two parts, one linear in the
features and one bent, has a size for the whole layer: z and z' are means over its entries of other
outputs, each of which reads both, and p = ``LOG_RANGE``. No direction is given, only the unit of a
length: which way to go is the network's own. Entries that are outputs as they are
(``directions.Entries``) have one magnitude for a whole run; here what is proposed can shrink with
what is left to do. Updates do with the gradient, and generators with q, the share of the outputs
that is wrong: by its root, since with q itself they are too small before the last teleports are
made, and without it nothing that is learned in float32 says that teleports should end, so that they
go on, and their rounding stays in the loss. Where q is not known it is 1.

No generator is longer than its ``reach``, which is 0 where the units are white already:

    within(r, T) = T / sqrt(1 + ||T||_F^2 / r^2),    r^2 = -2 log det S,    tr S = k

with S = H H^T over the mean of its diagonal. r^2 is four times the Kullback-Leibler divergence of
normal distributions of covariances S and I. Near I that r is ||S - I||_F, twice as far as it is to
white, so that a step along -S overshoots by no more than there was. What overshoots by more comes
back farther each time: that, and not its direction, is what carried weights to infinity on tasks of
other sizes. The meta-gradient holds r constant: where H is nearly singular its slope is without
bound, and it says how far a teleport may go, not where to.

Whitening is linear in one feature, the entries of H H^T: what makes it isometric adds a multiple
of I. It has to be exact to go on, and with one size for both parts what is bent stays beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt.rules.learned.directions import (
    GENERATOR_BASES,
    HEAD_BOUND,
    UPDATE_BASES,
    Basis,
    Directions,
    filled,
    isometric,
    joined,
    of_gradient,
)
from metaopt.rules.learned.features import LOG_RANGE, Seen, over_mean_diagonal, rms
from metaopt.rules.learned.matrix_steps import TINY

LEAST_SIZE, LARGEST_SIZE = -4.0, 0.5
"""Bounds of z: factors from 4e-18 to 150."""
LEAST_EIGENVALUE = 1e-5
"""Of H H^T over its mean: what is smaller, where H has fewer columns than rows, is rounding."""


class Sized(Basis):
    """Sizes of each layer and numbers of each entry, which are multiplied: a part of each network.

    What is one number for a layer shapes no direction here; it is a size of the layer's entries.
    """

    shaped = 2
    sizes = 2
    head_bound = HEAD_BOUND
    wired = True

    def units(self, units: Tensor) -> Directions:
        """No shaped direction, and units [B, entries] times ``free`` as the only size."""
        return Directions(
            units.new_empty(units.shape[0], 0, units.shape[1]), self.free * units[:, None]
        )

    def coefficients(self, z: Tensor) -> Tensor:
        """exp(p z), z within its bounds."""
        return (LOG_RANGE * z.clamp(LEAST_SIZE, LARGEST_SIZE)).exp()

    def combine(
        self, of_layers: Tensor, of_entries: Tensor, counts: Sequence[int], seen: Seen
    ) -> Tensor:
        """Units times sum_d exp(p z^d) a^d, [B, entries]; arguments as of ``Basis.combine``."""
        c = self.coefficients(of_layers)
        parts = of_entries.split([*counts], dim=2)
        entries = [(c[:, :, i, None] * part).sum(1) for i, part in enumerate(parts)]
        units = self.directions(seen).sizes[:, 0]
        return self.project(torch.cat(entries, dim=1) * units, seen)


class SizedUpdates(Sized):
    """Updates in units of the natural step; entries without a gradient stay, as elsewhere."""

    def directions(self, seen: Seen) -> Directions:
        """The root mean square of N in each layer, in all of its entries."""
        return self.units(filled([rms(n) for n in seen.natural], seen.natural))

    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """Entries without a gradient are set to 0."""
        return of_gradient(entries, seen)


class SizedGenerators(Sized):
    """Generators; E of root mean square 1 has sqrt(q) times the Frobenius norm of the identity."""

    def directions(self, seen: Seen) -> Directions:
        """sqrt(q / k) in all entries."""
        root = (seen.log_residual * (LOG_RANGE / 4)).exp()[:, None]
        widths = (products.shape[-1] for products in seen.products)
        parts = [(root / math.sqrt(k)).expand(-1, k * k) for k in widths]
        return self.units(torch.cat(parts, dim=1))

    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """The isometric part of the generators (``Whitening``), each within its reach."""
        generators = zip(isometric(entries, seen), seen.products, strict=True)
        return joined([within(reach(products[:, 0].detach()), T) for T, products in generators])


def within(r: Tensor, T: Tensor) -> Tensor:
    """T / sqrt(1 + ||T||_F^2 / r^2): ``BoundedNorm`` of a norm for each, [B], that may be 0."""
    r = r[:, None, None]
    squares = r.square() + T.square().sum((1, 2), keepdim=True)
    return T * r * torch.rsqrt(squares + TINY)


def reach(HHt: Tensor) -> Tensor:
    """sqrt(-2 log det S), [B], S = H H^T [B, k, k] over the mean of its diagonal, and a little I.

    It is 0 for a multiple of the identity, and does not depend on scale. In float64: the logarithms
    of nearly white units cancel.
    """
    dtype, k, HHt = HHt.dtype, HHt.shape[-1], HHt.double()
    identity = torch.eye(k, dtype=HHt.dtype, device=HHt.device)
    S = (over_mean_diagonal(HHt) + LEAST_EIGENVALUE * identity) / (1 + LEAST_EIGENVALUE)
    # Whether S is positive definite, which rounding may spoil, is not asked of the device.
    factor, failed = torch.linalg.cholesky_ex(S)
    pivots = torch.diagonal(factor, dim1=-2, dim2=-1).square().clamp(min=LEAST_EIGENVALUE)
    squares = torch.where(
        failed > 0, -2 * k * math.log(LEAST_EIGENVALUE), -2 * pivots.log().sum(-1)
    )
    return squares.clamp(min=0).sqrt().to(dtype)


SIZED = "sized"
UPDATE_BASES_OF_COORDINATES: dict[str, type[Basis]] = {**UPDATE_BASES, SIZED: SizedUpdates}
GENERATOR_BASES_OF_COORDINATES: dict[str, type[Basis]] = {**GENERATOR_BASES, SIZED: SizedGenerators}
"""What coordinate-wise rules may choose from, whose features are those of single entries."""
