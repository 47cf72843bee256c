"""Products <x, y> of the charges of many symmetries together, as one flat vector.

    <x, y> = sum over incoming slots p x_s y_s^T  -  the same over outgoing slots

as in ``symmetry.conserved``, for all symmetries at once. What a symmetry moves may be trained with
several settings (weight decay on weights alone, say). The parameters with one setting are a *cell*:
a charge is the sum of its cells, and each cell has entries of its own.

Along scaled units no entries are brought in order: x y is summed over the axes that the group does
not act on, one vector for each axis of a parameter, and one index map sends the entries of all
vectors to the units.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaopt.symmetry.conserved import Tensors
from metaopt.symmetry.groups import Group, Slot, Symmetry


@dataclass(frozen=True)
class Cell:
    """What one setting of the optimizer moves of one symmetry.

    Attributes:
        name: of the symmetry.
        paths: the parameters, each once.
        start: the first of its entries in the flat vector.
        shape: of its entries: [blocks, k, k], [blocks, k], [blocks], or [n] for a translation.
    """

    name: str
    paths: tuple[str, ...]
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """One after the last of its entries."""
        return self.start + torch.Size(self.shape).numel()


Part = Callable[[str], Hashable]
"""The setting with which the parameter at a path is trained."""


@dataclass(frozen=True)
class _Piece:
    """A part of the flat vector of sums: what ``read`` makes of x * y of one parameter."""

    path: str
    length: int
    read: Callable[[Tensor], Tensor]


Signed = tuple[int, Slot]
"""p for an incoming slot, -p for an outgoing one; and the slot."""


class Forms:
    """Products of the quadratic charges of some symmetries.

    Cells with one setting follow each other.

    Args:
        symmetries: by name; no translations.
        like: the parameters, by path.
        part: parameters of a symmetry with equal settings are one cell.
        device: of the result.
    """

    def __init__(
        self, symmetries: Mapping[str, Symmetry], like: Tensors, part: Part, device: torch.device
    ) -> None:
        self._like = like
        self._pieces: dict[Hashable, int] = {}
        self._pieces_of: dict[str, list[tuple[int, _Piece]]] = {}
        self._matrices: list[tuple[Cell, list[Signed]]] = []
        self._length = 0
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.cells: list[Cell] = []
        empty = torch.zeros(0, dtype=torch.long)
        maps: list[tuple[Tensor, Tensor, Tensor]] = [(empty, empty, empty)]
        parts: dict[Hashable, dict[str, list[Signed]]] = {}
        for name, symmetry in symmetries.items():
            for sign, slots in ((1, symmetry.incoming), (-1, symmetry.outgoing)):
                for slot in slots:
                    cells = parts.setdefault(part(slot.path), {})
                    cells.setdefault(name, []).append((sign * slot.power, slot))
        for cells in parts.values():
            for name, signed in cells.items():
                paths = tuple(dict.fromkeys(slot.path for _, slot in signed))
                symmetry = symmetries[name]
                cell = Cell(name, paths, self.size, _shape(symmetry))
                self.cells.append(cell)
                if symmetry.group is Group.LINEAR:
                    self._matrices.append((cell, signed))
                    continue
                for power, slot in signed:
                    source, target = self._maps(symmetry, slot)
                    factor = torch.full_like(source, power)
                    maps.append((source, cell.start + target, factor))
        source, target, factor = (torch.cat(one).to(device) for one in zip(*maps, strict=True))
        self._source, self._target, self._factor = source, target, factor.double()

    @property
    def size(self) -> int:
        """How many entries all cells have."""
        return self.cells[-1].stop if self.cells else 0

    def products(
        self,
        lefts: Sequence[Tensors],
        right: Tensors,
        *,
        absolute: bool = False,
        out: Tensor | None = None,
    ) -> Tensor:
        """<x, y> of each x among ``lefts`` and y = ``right``.

        Args:
            lefts: tensors by path; slots whose path is missing there, or in ``right``, count as
                zero.
            right: the same.
            absolute: outgoing slots are added, not taken away.
            out: where the result is written, if it is given.

        Returns:
            [x, entries], float64.
        """
        device = self._factor.device
        result = out
        if result is None:
            result = torch.empty(len(lefts), self.size, dtype=torch.float64, device=device)
        result.zero_()
        if self._pieces:
            sums = torch.stack([self._vectors(left, right) for left in lefts])
            factor = self._factor.abs() if absolute else self._factor
            result.index_add_(1, self._target, sums.index_select(1, self._source) * factor)
        for cell, signed in self._matrices:
            powers = [(abs(power) if absolute else power, slot) for power, slot in signed]
            matrices = _matrices(cell.shape, powers, lefts, right)
            if matrices is not None:
                result[:, cell.start : cell.stop] = matrices.flatten(1).to(device)
        return result

    def _vectors(self, left: Tensors, right: Tensors) -> Tensor:
        """The sums of all pieces, float64."""
        device = self._factor.device
        parts = [torch.zeros(0)] * len(self._pieces)
        for path, pieces in self._pieces_of.items():
            x, y = left.get(path), right.get(path)
            product = None if x is None or y is None else self._product(x, y)
            for number, piece in pieces:
                if product is None:
                    parts[number] = torch.zeros(piece.length, device=device)
                else:
                    parts[number] = piece.read(product).to(device)
        return torch.cat(parts).double()

    def _product(self, x: Tensor, y: Tensor) -> Tensor:
        """x * y, until the next one is asked for: fresh memory costs more than the product."""
        dtype = torch.promote_types(x.dtype, y.dtype)
        key = x.device, dtype
        if key not in self._scratch or self._scratch[key].numel() < x.numel():
            self._scratch[key] = torch.empty(x.numel(), dtype=dtype, device=x.device)
        return torch.mul(x, y, out=self._scratch[key][: x.numel()].view(x.shape))

    def _maps(self, symmetry: Symmetry, slot: Slot) -> tuple[Tensor, Tensor]:
        """Which sums count for a slot, and for which entries of its cell."""
        blocks, size, path = symmetry.blocks, symmetry.size, slot.path
        if slot.groups > 1:
            piece = _Piece(path, blocks * size, _ordered(slot, blocks, size))
            start = self._piece((slot, blocks, size), piece)
            positions = torch.arange(blocks * size).view(1, blocks, size)
        else:
            length = _region(slot, self._like[path]).shape[slot.axis]
            start = self._piece((path, slot.axis, slot.rows), _Piece(path, length, _vector(slot)))
            along = replace(slot, axis=0, rows=None)
            positions = along.entries(torch.arange(length), blocks, size)[..., 0]
        units = torch.arange(blocks * size).view(blocks, size)
        if symmetry.group is Group.ROTARY:
            units = torch.arange(blocks)[:, None].expand(blocks, size)
        return start + positions.flatten(), units.expand_as(positions).flatten()

    def _piece(self, key: Hashable, piece: _Piece) -> int:
        """Where the piece starts; it is added if there is none like it."""
        if key not in self._pieces:
            self._pieces_of.setdefault(piece.path, []).append((len(self._pieces), piece))
            self._pieces[key] = self._length
            self._length += piece.length
        return self._pieces[key]


class Sums:
    """Sums over the units along translations, as one flat vector; each slot is a cell.

    Args:
        symmetries: translations, by name.
        like: the parameters, by path.
        device: of the result.
    """

    def __init__(
        self, symmetries: Mapping[str, Symmetry], like: Tensors, device: torch.device
    ) -> None:
        self._device = device
        self._slots = [(one, slot) for one in symmetries.values() for slot in one.slots]
        self.cells: list[Cell] = []
        for name, symmetry in symmetries.items():
            for slot in symmetry.slots:
                length = _sums(symmetry, slot, like[slot.path]).numel()
                self.cells.append(Cell(name, (slot.path,), self.size, (length,)))

    @property
    def size(self) -> int:
        """How many entries all cells have."""
        return self.cells[-1].stop if self.cells else 0

    def of(self, tensors: Tensors) -> Tensor:
        """The sums [entries], float64; zero where a path is missing."""
        parts = [torch.zeros(0, device=self._device)]
        for (symmetry, slot), cell in zip(self._slots, self.cells, strict=True):
            tensor = tensors.get(slot.path)
            if tensor is None:
                parts.append(torch.zeros(cell.shape, device=self._device))
            else:
                parts.append(_sums(symmetry, slot, tensor).to(self._device))
        return torch.cat(parts).double()


def _shape(symmetry: Symmetry) -> tuple[int, ...]:
    """Of the entries of a quadratic charge."""
    blocks, size = symmetry.blocks, symmetry.size
    if symmetry.group is Group.LINEAR:
        return blocks, size, size
    return (blocks,) if symmetry.group is Group.ROTARY else (blocks, size)


def _region(slot: Slot, tensor: Tensor) -> Tensor:
    return tensor if slot.rows is None else tensor.narrow(0, *slot.rows)


def _vector(slot: Slot) -> Callable[[Tensor], Tensor]:
    """Sums over all axes but the slot's."""

    def read(product: Tensor) -> Tensor:
        region, axis = _region(slot, product), slot.axis
        # The axes ahead first: whole rows are added, which is fast, and little is left.
        if axis > 0:
            region = region.sum(tuple(range(axis)))
        return region.flatten(1).sum(1) if region.dim() > 1 else region.clone()

    return read


def _ordered(slot: Slot, blocks: int, size: int) -> Callable[[Tensor], Tensor]:
    """Sums of the entries of each unit."""
    return lambda product: slot.entries(product, blocks, size).sum((0, 3)).flatten()


def _matrices(
    shape: tuple[int, ...], signed: Sequence[Signed], lefts: Sequence[Tensors], right: Tensors
) -> Tensor | None:
    """The sum of p (x y^T + y x^T) / 2 over slots, [x, blocks, k, k]; None if all are missing."""
    blocks, size, _ = shape

    def entries(slot: Slot, tensor: Tensor) -> Tensor:
        return slot.columns(tensor, blocks, size)

    total = None
    for power, slot in signed:
        if slot.path not in right:
            continue
        known = right[slot.path]
        y = entries(slot, known)
        given = [left.get(slot.path) for left in lefts]
        xs = [
            y if x is known else torch.zeros_like(y) if x is None else entries(slot, x)
            for x in given
        ]
        product = torch.cat(xs, 1) @ y.mT
        total = power * product if total is None else total.add_(product, alpha=power)
    if total is None:
        return None
    total = total.unflatten(1, (len(lefts), size)).transpose(0, 1)
    return (total + total.mT) / 2


def _sums(symmetry: Symmetry, slot: Slot, tensor: Tensor) -> Tensor:
    return slot.entries(tensor, symmetry.blocks, symmetry.size).sum((0, 2)).flatten()
