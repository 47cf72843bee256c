"""Entries with sizes of their own: outputs that fill any direction, over many orders of magnitude.

    f = rms(N_l) E                     updates; N_l is the natural step of layer l
    T = E / sqrt(k), made isometric    generators of pair l, k by k
    E = free (exp(p z) (v . x + b) + exp(p z') (v' . h + b'))

x are the features of an entry and h is its hidden state. Each of the two parts, one linear in the
features and one bent, has a size for the whole layer: z and z' are means over its entries of other
outputs, each of which reads both, and p = ``LOG_RANGE``. No direction is given, only the unit of a
length: which way to go is the network's own. Entries that are outputs as they are
(``directions.Entries``) have one magnitude for a whole run; here what is proposed can shrink with
what is left to do.

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
    of_gradient,
)
from metaopt.rules.learned.features import LOG_RANGE, Seen, rms

LEAST_SIZE, LARGEST_SIZE = -4.0, 0.5
"""Bounds of z: factors from 4e-18 to 150."""


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
    """Generators whose entries of root mean square 1 have the Frobenius norm of the identity."""

    def directions(self, seen: Seen) -> Directions:
        """1 / sqrt(k) in all entries."""
        parts = [
            HHt.new_full((HHt.shape[0], HHt.shape[-1] ** 2), 1 / math.sqrt(HHt.shape[-1]))
            for HHt in (products[:, 0] for products in seen.products)
        ]
        return self.units(torch.cat(parts, dim=1))

    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """The isometric part of the generators (``Whitening``)."""
        return isometric(entries, seen)


SIZED = "sized"
UPDATE_BASES_OF_COORDINATES: dict[str, type[Basis]] = {**UPDATE_BASES, SIZED: SizedUpdates}
GENERATOR_BASES_OF_COORDINATES: dict[str, type[Basis]] = {**GENERATOR_BASES, SIZED: SizedGenerators}
"""What coordinate-wise rules may choose from, whose features are those of single entries."""
