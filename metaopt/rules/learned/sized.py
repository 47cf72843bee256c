"""Entries with sizes of their own: outputs that fill any direction, over many orders of magnitude.

    f = a rms(N_l) exp(p z_l)                     updates; N_l is the natural step of layer l
    T = a exp(p z_l) / sqrt(k), made isometric    generators of pair l, k by k

The network says a, a number for each entry, and z_l, the mean over the layer's entries of another
one, with p = ``LOG_RANGE``. No direction is given, only the unit of a length: which way to go is
the network's own. Entries that are outputs as they are (``directions.Entries``) have one magnitude
for a whole run; here what is proposed can shrink with what is left to do.

A cell's hidden state lies within (-1, 1), so that what a is to be proportional to, such as the
entries of H H^T, is bent by it. The head therefore reads the features as well (``wired``): a linear
map is then as easy to learn as a bent one.

Second moments and products are where whitening comes from, as in ``directions.Whitening``: there
its direction is given and bounded, here it has to be found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt.rules.base import flat_gradient
from metaopt.rules.learned.directions import (
    GENERATOR_BASES,
    HEAD_BOUND,
    UPDATE_BASES,
    Basis,
    Directions,
    filled,
    isometric,
)
from metaopt.rules.learned.features import LOG_RANGE, Seen, rms

LEAST_SIZE, LARGEST_SIZE = -4.0, 0.5
"""Bounds of z: factors from 4e-18 to 150."""


class Sized(Basis):
    """One size of each layer and one number of each entry, which are multiplied.

    What is called a shaped direction elsewhere is here the unit of the entries of a layer.
    """

    shaped = 1
    sizes = 1
    head_bound = HEAD_BOUND
    wired = True

    def coefficients(self, z: Tensor) -> Tensor:
        """exp(p z), z within its bounds."""
        return (LOG_RANGE * z.clamp(LEAST_SIZE, LARGEST_SIZE)).exp()

    def combine(
        self, of_layers: Tensor, of_entries: Tensor, counts: Sequence[int], seen: Seen
    ) -> Tensor:
        """a times units times exp(p z), [B, entries]; see ``Basis.combine`` for the arguments."""
        c = self.coefficients(of_layers)[:, 0]
        units = self.directions(seen).shaped[:, 0]
        sizes = [c[:, i, None] * unit for i, unit in enumerate(units.split([*counts], dim=1))]
        return self.project(self.free * of_entries[:, 0] * torch.cat(sizes, dim=1), seen)


class SizedUpdates(Sized):
    """Updates in units of the natural step; entries without a gradient stay, as elsewhere."""

    def directions(self, seen: Seen) -> Directions:
        """The root mean square of N in each layer, in all of its entries."""
        units = filled([rms(n) for n in seen.natural], seen.natural)[:, None]
        return Directions(units, units[:, :0])

    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """Entries without a gradient are set to 0."""
        return torch.where(flat_gradient(seen.observation) == 0, 0.0, entries)


class SizedGenerators(Sized):
    """Generators whose entries of root mean square 1 have the Frobenius norm of the identity."""

    def directions(self, seen: Seen) -> Directions:
        """1 / sqrt(k) in all entries."""
        parts = [
            HHt.new_full((HHt.shape[0], HHt.shape[-1] ** 2), 1 / math.sqrt(HHt.shape[-1]))
            for HHt in (products[:, 0] for products in seen.products)
        ]
        units = torch.cat(parts, dim=1)[:, None]
        return Directions(units, units[:, :0])

    def project(self, entries: Tensor, seen: Seen) -> Tensor:
        """The isometric part of the generators (``Whitening``)."""
        return isometric(entries, seen)


SIZED = "sized"
UPDATE_BASES_OF_ENTRIES: dict[str, type[Basis]] = {**UPDATE_BASES, SIZED: SizedUpdates}
GENERATOR_BASES_OF_ENTRIES: dict[str, type[Basis]] = {**GENERATOR_BASES, SIZED: SizedGenerators}
"""What rules may choose from whose features are those of single entries."""
