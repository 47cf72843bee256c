"""Which entries of which parameters make a hidden unit, and which entries read it.

    x -> exp(t_i) x   for entries that make unit i (rows of W_in, its bias)
    y -> exp(-t_i) y  for entries that read it (columns of W_out)

This does not change what the network computes, on any data, if its units pass through positively
homogeneous activations only. An entry may make one unit and read another (a row of one, a column of
the other). Altogether w -> exp(l) w, with l the sum of the entry's +-t.

A task family states which entry belongs to which unit, or ``units_of`` reads it from symmetries
that were found in a model. It never changes. Everything here is batched over trajectories and does
not wait for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from metaopt.base.network import Weights, as_matrices
from metaopt.symmetry.groups import Group, Slot, Symmetry

MAKES, READS = 1.0, -1.0


@dataclass(frozen=True)
class Stretch:
    """The entries of one matrix [out, rest] that make, or read, the units of one symmetry.

    Attributes:
        tensor: the position of the matrix among the weights.
        sign: ``MAKES`` or ``READS``.
        symmetry: the position of the symmetry that the units belong to.
        unit: the number of each entry's unit, int64 [out or 1, rest or 1]; an axis along which it
            is constant has length 1. ``HiddenUnits.count`` stands for entries of no unit.
        entries: int64 [units of this symmetry, n]: for each unit the positions of its n entries in
            ``unit``, flattened.
    """

    tensor: int
    sign: float
    symmetry: int
    unit: Tensor
    entries: Tensor

    @staticmethod
    def of(tensor: int, sign: float, symmetry: int, size: int, unit: Tensor, none: int) -> Stretch:
        """The stretch in which ``unit`` [out, rest] says which unit each entry belongs to.

        ``size`` is the number of units, each of which must have equally many entries; ``none`` is
        the number that stands for no unit.
        """
        if bool((unit == unit[:, :1]).all()):
            unit = unit[:, :1]
        if bool((unit == unit[:1]).all()):
            unit = unit[:1]
        flat = unit.flatten()
        order = flat.argsort(stable=True)
        entries = order[flat[order] != none].reshape(size, -1)
        return Stretch(tensor, sign, symmetry, unit, entries)

    def sums(self, values: Tensor) -> Tensor:
        """Sums of values [B, out, rest] over each unit's entries: [B, units of this symmetry]."""
        rows, columns = self.unit.shape
        if columns == 1:
            values = values.sum(2, keepdim=True)
        if rows == 1:
            values = values.sum(1, keepdim=True)
        return values.flatten(1)[:, self.entries].sum(2)


@dataclass(frozen=True)
class HiddenUnits:
    """All hidden units of a network that may be scaled, symmetry by symmetry.

    Attributes:
        sizes: the number of units of each symmetry; units are numbered in this order.
        stretches: the entries that make or read them.
    """

    sizes: tuple[int, ...]
    stretches: tuple[Stretch, ...]

    @property
    def count(self) -> int:
        """K, the number of hidden units."""
        return sum(self.sizes)

    def log_factors(self, t: Tensor, weights: Weights) -> Weights:
        """l of each matrix, [B, out or 1, rest or 1]: the sum of the +-t of its entries.

        Args:
            t: the logarithms of the units' factors, [B, K].
            weights: the weights, each [B, out, rest]; only their number is read.
        """
        padded = torch.cat([t, t.new_zeros(len(t), 1)], dim=1)
        found = [t.new_zeros(len(t), 1, 1) for _ in weights]
        for stretch in self.stretches:
            found[stretch.tensor] = found[stretch.tensor] + stretch.sign * padded[:, stretch.unit]
        return tuple(found)

    def scaled(self, t: Tensor, weights: Weights) -> tuple[Weights, Weights]:
        """exp(l) w, and l, both shaped like the weights, for t [B, K]."""
        logs = self.log_factors(t, weights)
        moved = tuple(log.exp() * W for log, W in zip(logs, weights, strict=True))
        return moved, tuple(log.expand_as(W) for log, W in zip(logs, weights, strict=True))

    def sums(self, values: Weights, sign: float) -> Tensor:
        """Sums over the entries that make (or read) each unit: [B, K].

        Args:
            values: tensors shaped like the weights, each [B, out, rest].
            sign: ``MAKES`` or ``READS``.
        """
        parts = [values[0].new_zeros(len(values[0]), size) for size in self.sizes]
        for stretch in self.stretches:
            if stretch.sign == sign:
                part = stretch.sums(values[stretch.tensor])
                parts[stretch.symmetry] = parts[stretch.symmetry] + part
        return torch.cat(parts, dim=1)

    def means(self, x: Tensor) -> Tensor:
        """The mean of x [B, .., K] over each symmetry's units, at each of them: [B, .., K]."""
        parts = x.split(self.sizes, dim=-1)
        return torch.cat([p.mean(-1, keepdim=True).expand_as(p) for p in parts], dim=-1)

    def within(self, active: Sequence[bool]) -> Tensor:
        """1 for units of symmetries that touch active matrices only, 0 for the others: [K].

        Args:
            active: for each matrix of the weights whether it is active.
        """
        stays = {s.symmetry for s in self.stretches if not active[s.tensor]}
        # torch.full makes them on the device, so that nothing waits for a copy from the host.
        device = self.stretches[0].unit.device
        flags = [
            torch.full((n,), float(i not in stays), device=device) for i, n in enumerate(self.sizes)
        ]
        return torch.cat(flags)

    def to(self, device: torch.device | str) -> HiddenUnits:
        """The same units with their index tensors on another device."""
        moved = (
            replace(s, unit=s.unit.to(device), entries=s.entries.to(device)) for s in self.stretches
        )
        return HiddenUnits(self.sizes, tuple(moved))

    @staticmethod
    def of_chain(shapes: Sequence[tuple[int, int]]) -> HiddenUnits:
        """The units of a chain of layers: row i of W_l makes unit i, column i of W_{l+1} reads it.

        Scaling them is exact if the activations between the layers are positively homogeneous.

        Args:
            shapes: (out, in) of each matrix, in order.
        """
        sizes = tuple(out for out, _ in shapes[:-1])
        none, first = sum(sizes), 0
        stretches: list[Stretch] = []
        for layer, ((out, fan_in), (out_next, _)) in enumerate(pairwise(shapes)):
            ids = torch.arange(first, first + out, device="cpu")
            makes, reads = ids[:, None].expand(out, fan_in), ids[None].expand(out_next, out)
            stretches.append(Stretch.of(layer, MAKES, layer, out, makes, none))
            stretches.append(Stretch.of(layer + 1, READS, layer, out, reads, none))
            first += out
        return HiddenUnits(sizes, tuple(stretches))


def units_of(
    symmetries: Sequence[Symmetry], shapes: Mapping[str, torch.Size]
) -> HiddenUnits | None:
    """The hidden units of those symmetries that allow positive scaling; None if there are none.

    Symmetries that also move parameters which are not given, and those that rest on an assumption,
    are left out, and so are those in which entries move by other powers than 1 of a scale. In
    attention each component of a head's queries and values counts as a unit.

    Args:
        symmetries: the symmetries of the model.
        shapes: the shapes of the given parameters by path, in the order of the weights.

    Raises:
        ValueError: if a symmetry names an entry that a parameter does not have.
    """
    places = {path: i for i, path in enumerate(shapes)}
    chosen = [
        symmetry
        for symmetry in symmetries
        if Group.SCALING in symmetry.allows
        and not symmetry.assumes
        and symmetry.outgoing
        and all(slot.path in places and slot.power == 1 for slot in symmetry.slots)
    ]
    if not chosen:
        return None
    sizes = [symmetry.blocks * symmetry.size for symmetry in chosen]
    none, first = sum(sizes), 0
    stretches = []
    for i, (symmetry, size) in enumerate(zip(chosen, sizes, strict=True)):
        for sign, slots in ((MAKES, symmetry.incoming), (READS, symmetry.outgoing)):
            for slot in slots:
                unit = _numbered(symmetry, slot, shapes[slot.path], first, none)
                stretches.append(Stretch.of(places[slot.path], sign, i, size, unit, none))
        first += size
    return HiddenUnits(tuple(sizes), tuple(stretches))


def _numbered(symmetry: Symmetry, slot: Slot, shape: torch.Size, first: int, none: int) -> Tensor:
    """The number of each entry's unit, as a matrix [out, rest]."""
    blocks, size = symmetry.blocks, symmetry.size
    numbers = torch.arange(first, first + blocks * size, device="cpu").reshape(1, blocks, size, 1)
    empty = torch.full(shape, none, device="cpu")
    try:
        filled = slot.apply(empty, blocks, size, lambda stretch: numbers.expand_as(stretch))
    except (RuntimeError, IndexError):
        raise ValueError(
            f"{symmetry.name!r}: its stretch of {slot.path!r} lies outside of {list(shape)}"
        ) from None
    return as_matrices(filled[None])[0]
