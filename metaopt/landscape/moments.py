"""Sums over samples of what symmetries see of their gradients.

    incoming   sum_n sum over incoming slots s of p g_ns g_ns^T,   outgoing the same

The diagonal for positive scaling, the trace for a scale and rotation. A few samples are looked at
first: a symmetry of the loss of each sample has <w, g_n> = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap

from metaopt.landscape.gradients import Gradients
from metaopt.landscape.samples import FLOAT32
from metaopt.symmetry.conserved import Tensors, form, halves
from metaopt.symmetry.groups import Slot, Symmetry


class Moments:
    """Adds up gradients, parameter by parameter.

    Args:
        symmetries: by name, those that see the gradients.

    Attributes:
        total: {path: the sum of the gradients, of the shape of the parameter}, float64.
    """

    def __init__(self, symmetries: Mapping[str, Symmetry]) -> None:
        self._symmetries = symmetries
        self._sums: dict[tuple[str, bool], Tensor] = {}
        self._slots: dict[str, list[tuple[str, bool, Slot]]] = {}
        for name, one in symmetries.items():
            for is_incoming, slots in ((True, one.incoming), (False, one.outgoing)):
                for slot in slots:
                    self._slots.setdefault(slot.path, []).append((name, is_incoming, slot))
        self.total: dict[str, Tensor] = {}

    def add(self, path: str, gradients: Gradients) -> None:
        """Add the gradients of some samples by one parameter."""
        self.total[path] = self.total.get(path, 0) + gradients.sum()
        for name, is_incoming, slot in self._slots[path]:
            found = _squares(self._symmetries[name], *gradients.along(slot))
            self._sums[name, is_incoming] = self._sums.get((name, is_incoming), 0) + found

    def halves(self, name: str) -> tuple[Tensor, Tensor]:
        """The sums over incoming and over outgoing slots, shaped as by ``conserved.halves``."""
        sides = [self._sums.get((name, is_incoming)) for is_incoming in (True, False)]
        some = next(side for side in sides if side is not None)
        incoming, outgoing = (torch.zeros_like(some) if one is None else one for one in sides)
        return incoming, outgoing


def _squares(symmetry: Symmetry, slot: Slot, tensors: Tensor) -> Tensor:
    """sum_n p g_n g_n^T of one slot, from tensors [n, *shape]."""
    blocks, size = symmetry.blocks, symmetry.size
    # Samples, on the last axis, and copies are more columns of one matrix.
    columns = slot.columns(tensors.movedim(0, -1), blocks, size).flatten(0, 1)
    whole = replace(slot, axis=0, start=0, factors=(), rows=None, groups=1)
    alone = replace(symmetry, incoming=(whole,), outgoing=())
    return halves(alone, {slot.path: columns}, {slot.path: columns})[0]


def require_per_sample(symmetry: Symmetry, weights: Tensors, each: Tensors) -> None:
    """Raise ``ValueError`` if <w, g_n> is not 0 for the gradients of some samples.

    Args:
        symmetry: with a quadratic charge.
        weights: w, {path: tensor}, float64.
        each: g_n, {path: [n, *shape]}.
    """
    paths = {slot.path for slot in symmetry.slots}
    left = {path: weights[path] for path in paths}
    gradients = {path: each[path] for path in paths}
    wide = {path: gradient.double() for path, gradient in gradients.items()}
    errors = vmap(lambda one: form(symmetry, left, one))(wide)
    sizes = sum(weights[path].norm() * wide[path].flatten(1).norm(dim=1) for path in paths)
    own = (torch.finfo(gradient.dtype).eps for gradient in gradients.values())
    largest = max(FLOAT32, *own) ** 0.5
    relative = errors.flatten(1).norm(dim=1) / torch.as_tensor(sizes)
    worst = float(relative.nan_to_num(0).max())
    if worst > largest:
        raise ValueError(
            f"symmetry {symmetry.short_name!r} does not hold for each sample: <w, g> of a sample's "
            f"gradient is {worst:.1e} of |w| |g|, where at most {largest:.0e} is rounding"
        )
