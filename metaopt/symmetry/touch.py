"""What a teleport does to one tensor: all its touches together, rounded once.

    y = F x P^T F'   for the axes of a matrix whose entries are relabelled and scaled alone

Relabellings, signs and scales along one axis are one index and one factor for each of its entries.
Axes commute, so that relabellings are done first, in the tensor's own precision; what rounds is
done in float64, a few rows at a time. Matrices act on a float64 copy, in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaopt.symmetry.elements import Diagonal, Element, Identity, Relabelling, Signs, Translation
from metaopt.symmetry.groups import Slot, Symmetry

CHUNK = 2**18
"""Entries that the CPU moves at a time: few enough for its cache."""


@dataclass(frozen=True)
class Touch:
    """What a teleport does to one slot of one tensor.

    Attributes:
        slot: the slot.
        symmetry: the symmetry that the slot belongs to.
        element: the element of the symmetry's group, as it acts in this slot.
        is_incoming: whether the weights in the slot move by g; otherwise they move by g^-T.
    """

    slot: Slot
    symmetry: Symmetry
    element: Element
    is_incoming: bool


@dataclass(frozen=True)
class _Step:
    """A linear map along one axis.

    Attributes:
        touch: where it acts.
        element: the element that acts; that of the touch, or its square.
        by_g: whether it acts by g, otherwise by g^-T.
    """

    touch: Touch
    element: Element
    by_g: bool

    @property
    def axis(self) -> int:
        """The axis of the tensor."""
        return self.touch.slot.axis

    @property
    def is_identity(self) -> bool:
        """Whether it does nothing, as a translation to gradients."""
        translates = isinstance(self.element, Translation)
        return isinstance(self.element, Identity) or (translates and not self.by_g)

    @property
    def is_plain(self) -> bool:
        """Whether it is the same linear map for all entries of the other axes."""
        slot = self.touch.slot
        return slot.rows is None and slot.groups == 1 and not isinstance(self.element, Translation)

    @property
    def is_monomial(self) -> bool:
        """Whether it relabels and scales entries, and does not mix them."""
        return isinstance(self.element, Relabelling | Diagonal | Signs)

    @property
    def act(self) -> Callable[[Tensor], Tensor]:
        return self.element.act if self.by_g else self.element.act_inversely_transposed

    def change(self, tensor: Tensor) -> None:
        """Act on a tensor in place."""
        symmetry = self.touch.symmetry
        self.touch.slot.change(tensor, symmetry.blocks, symmetry.size, self.act)

    def change_along(self, vector: Tensor) -> None:
        """Act in place on a vector with one entry for each of the axis."""
        symmetry, slot = self.touch.symmetry, replace(self.touch.slot, axis=0)
        slot.change(vector, symmetry.blocks, symmetry.size, self.act)


def weights(tensor: Tensor, touches: Sequence[Touch]) -> Tensor:
    """The weights after the teleport.

    Args:
        tensor: the weights.
        touches: all that is done to them, in order.
    """
    return _moved(tensor, [_Step(t, t.element, t.is_incoming) for t in touches])


def gradients(tensor: Tensor, touches: Sequence[Touch]) -> Tensor:
    """A tensor that is linear in gradients, moved as they are, by the inverse transpose."""
    return _moved(tensor, [_Step(t, t.element, not t.is_incoming) for t in touches])


def squares(tensor: Tensor, touches: Sequence[Touch]) -> Tensor | None:
    """A tensor linear in squares of gradient entries, moved as they are; None if unknown."""
    steps = []
    for t in touches:
        if t.element.squared is None:
            return None
        steps.append(_Step(t, t.element.squared, not t.is_incoming))
    return _moved(tensor, steps)


def _moved(tensor: Tensor, steps: Sequence[_Step]) -> Tensor:
    """A tensor of the same dtype that shares no memory with the given one."""
    steps = [step for step in steps if not step.is_identity]
    value = tensor.detach()
    # Steps along different axes commute, but not with translations, nor if some rows alone move.
    plain = all(step.is_plain for step in steps)
    mixed = {step.axis for step in steps if not (plain and step.is_monomial)}
    rounded = mixed | {step.axis for step in steps if step.element.is_rounded}
    if not mixed:
        return _monomial(value, steps)
    first = [step for step in steps if step.axis not in rounded]
    then = [step for step in steps if step.axis in rounded]
    if first:
        value = _monomial(value, first)
    is_rounded = any(step.element.is_rounded for step in then)
    wide = value.to(torch.float64 if is_rounded else value.dtype, copy=True)
    for step in then:
        step.change(wide)
    return wide.to(value.dtype)


@dataclass
class _Monomial:
    """y_i = factor_i x_index_i along one axis; None stands for what is not there."""

    index: Tensor | None = None
    factor: Tensor | None = None

    def then(self, step: _Step, like: Tensor) -> None:
        """Let a step follow, along an axis of a tensor."""
        n, device = like.shape[step.axis], like.device
        if isinstance(step.element, Relabelling):
            self.index = torch.arange(n, device=device) if self.index is None else self.index
            step.change_along(self.index)
        elif self.factor is None:
            self.factor = torch.ones(n, dtype=torch.float64, device=device)
        if self.factor is not None:
            step.change_along(self.factor)


def _monomial(value: Tensor, steps: Sequence[_Step]) -> Tensor:
    """Relabelled and scaled entries, some rows at a time."""
    maps = {step.axis: _Monomial() for step in steps}
    for step in steps:
        maps[step.axis].then(step, value)
    is_rounded = any(step.element.is_rounded for step in steps)
    dtype = torch.float64 if is_rounded else value.dtype
    result = torch.empty_like(value, memory_format=torch.contiguous_format)
    rows = len(value)
    if value.device.type == "cpu":
        rows = max(1, CHUNK * rows // max(1, value.numel()))
    for start in range(0, len(value), rows):
        chunk = slice(start, start + rows)
        part = value[chunk]
        for axis, found in sorted(maps.items()):
            if found.index is None:
                continue
            if axis == 0:
                part = value.index_select(0, found.index[chunk])
            else:
                part = part.index_select(axis, found.index)
        for axis, found in maps.items():
            if found.factor is not None:
                factor = found.factor[chunk] if axis == 0 else found.factor
                others = [1] * (value.dim() - axis - 1)
                part = factor.to(dtype).view(-1, *others) * part
        result[chunk] = part
    return result
