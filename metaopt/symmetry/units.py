"""Which entries of which parameters make a hidden unit, and which read it.

    x -> exp(t_i) x   for entries that make unit i (rows of W_in, its bias)
    y -> exp(-t_i) y  for entries that read it (columns of W_out)

leaves what a network computes, on any data, where its units pass through positively homogeneous
activations. An entry may lie in several stretches (a row of one unit, a column of another), so that
w -> exp(l) w with l the sum of their +-t.

Which entry is whose is static, and is known of a task, or found in a model (``units_of``).
Everything here is batched over trajectories and waits for no device.
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
    """Entries of one matrix [out, rest] that make, or read, the units of one symmetry.

    Attributes:
        tensor: position of the matrix among the weights.
        sign: ``MAKES`` or ``READS``.
        symmetry: position of the symmetry whose units they are.
        unit: int64 [out or 1, rest or 1], the unit of each entry, where it is the same along an
            axis with that axis of length 1; ``HiddenUnits.count`` for entries of no unit.
        entries: int64 [units of this symmetry, n], for each the entries of ``unit``, flattened,
            that are its own.
    """

    tensor: int
    sign: float
    symmetry: int
    unit: Tensor
    entries: Tensor

    @staticmethod
    def of(tensor: int, sign: float, symmetry: int, size: int, unit: Tensor, none: int) -> Stretch:
        """From the unit of each entry, [out, rest], each of ``size`` units as often as any other.

        ``none`` stands for no unit.
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
        """Of values [B, out, rest] over the entries of each unit, [B, units of this symmetry]."""
        rows, columns = self.unit.shape
        if columns == 1:
            values = values.sum(2, keepdim=True)
        if rows == 1:
            values = values.sum(1, keepdim=True)
        return values.flatten(1)[:, self.entries].sum(2)


@dataclass(frozen=True)
class HiddenUnits:
    """All hidden units that may be scaled, by symmetry.

    Attributes:
        sizes: units of each symmetry; they are numbered in this order.
        stretches: of all of them.
    """

    sizes: tuple[int, ...]
    stretches: tuple[Stretch, ...]

    @property
    def count(self) -> int:
        """K, the number of units."""
        return sum(self.sizes)

    def log_factors(self, t: Tensor, weights: Weights) -> Weights:
        """l of each matrix, each [B, out or 1, rest or 1], for t [B, K]."""
        padded = torch.cat([t, t.new_zeros(len(t), 1)], dim=1)
        found = [t.new_zeros(len(t), 1, 1) for _ in weights]
        for stretch in self.stretches:
            found[stretch.tensor] = found[stretch.tensor] + stretch.sign * padded[:, stretch.unit]
        return tuple(found)

    def scaled(self, t: Tensor, weights: Weights) -> tuple[Weights, Weights]:
        """exp(l) w, and l of each entry, both shaped like the weights, for t [B, K]."""
        logs = self.log_factors(t, weights)
        moved = tuple(log.exp() * W for log, W in zip(logs, weights, strict=True))
        return moved, tuple(log.expand_as(W) for log, W in zip(logs, weights, strict=True))

    def sums(self, values: Weights, sign: float) -> Tensor:
        """Of values shaped like the weights, over what makes (or reads) each unit: [B, K]."""
        parts = [values[0].new_zeros(len(values[0]), size) for size in self.sizes]
        for stretch in self.stretches:
            if stretch.sign == sign:
                part = stretch.sums(values[stretch.tensor])
                parts[stretch.symmetry] = parts[stretch.symmetry] + part
        return torch.cat(parts, dim=1)

    def means(self, x: Tensor) -> Tensor:
        """The mean over the units of each symmetry, at each of its units: [B, .., K]."""
        parts = x.split(self.sizes, dim=-1)
        return torch.cat([p.mean(-1, keepdim=True).expand_as(p) for p in parts], dim=-1)

    def within(self, active: Sequence[bool]) -> Tensor:
        """1 for the units of symmetries that touch active matrices alone, 0 for others: [K]."""
        stays = {s.symmetry for s in self.stretches if not active[s.tensor]}
        # Numbers of Python, on the device at hand: no copy of them is waited for.
        device = self.stretches[0].unit.device
        flags = [
            torch.full((n,), float(i not in stays), device=device) for i, n in enumerate(self.sizes)
        ]
        return torch.cat(flags)

    def to(self, device: torch.device | str) -> HiddenUnits:
        """The same units, known on another device."""
        moved = (
            replace(s, unit=s.unit.to(device), entries=s.entries.to(device)) for s in self.stretches
        )
        return HiddenUnits(self.sizes, tuple(moved))

    @staticmethod
    def of_chain(shapes: Sequence[tuple[int, int]]) -> HiddenUnits:
        """Those of a chain of matrices (out, in): rows of W_l make units, columns of W_{l+1} read.

        Exact where the activations between them are positively homogeneous.
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
    """The units of those symmetries that allow positive scaling, or None where there are none.

    Left out are those that move anything beyond the parameters at hand, and those that rest on an
    assumption. A head of an attention has a unit for each of its queries' and values' components.

    Args:
        symmetries: of the model.
        shapes: of its parameters at hand, by path, in the order of the rules.

    Raises:
        ValueError: where a symmetry names an entry that a parameter does not have.
    """
    places = {path: i for i, path in enumerate(shapes)}
    chosen = [
        symmetry
        for symmetry in symmetries
        if Group.SCALING in symmetry.allows
        and not symmetry.assumes
        and all(slot.path in places for slot in symmetry.slots)
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
    """The unit of each entry of a parameter, as a matrix [out, rest]."""
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
