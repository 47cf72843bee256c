"""Moves the tensors of a model under a teleport: all are computed, then all are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from metaopt.symmetry.drawing import random_elements
from metaopt.symmetry.elements import Element
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.touch import Touch, gradients, weights

Touches = dict[str, list[Touch]]
"""Path of a tensor -> what is done to it, in order."""


def tensor_at(model: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at a path; raises ``AttributeError`` if there is none."""
    owner, _, name = path.rpartition(".")
    tensor = getattr(model.get_submodule(owner), name)
    if not isinstance(tensor, Tensor):
        raise AttributeError(f"{path} is no tensor")
    return tensor


def require(model: nn.Module, symmetry: Symmetry, slot: Slot) -> None:
    """Raise ``ValueError`` if a model has no such slot."""
    try:
        shape = tensor_at(model, slot.path).shape
    except AttributeError as error:
        message = f"symmetry {symmetry.short_name!r}: the model has no tensor {slot.path!r}"
        raise ValueError(message) from error
    stop = slot.start + slot.length(symmetry.blocks, symmetry.size)
    if slot.axis >= len(shape) or stop > shape[slot.axis] * slot.groups:
        raise ValueError(
            f"symmetry {symmetry.short_name!r} needs {stop} entries on axis {slot.axis} of "
            f"{slot.path!r}, found shape {list(shape)}"
        )
    if slot.factors:
        wanted = {"block": symmetry.blocks, "unit": symmetry.size}
        counted = {role: math.prod(n for r, n in slot.factors if r == role) for role in wanted}
        if counted != wanted:
            raise ValueError(
                f"symmetry {symmetry.short_name!r} has {symmetry.blocks} blocks of {symmetry.size} "
                f"units, found factors {slot.factors} of {slot.path!r}"
            )
    if symmetry.group is Group.TRANSLATION and slot in symmetry.outgoing:
        raise ValueError(f"symmetry {symmetry.short_name!r}: a translation has no outgoing slots")


def touches(model: nn.Module, symmetries: Sequence[Symmetry], norm: float, seed: int) -> Touches:
    """What a random element of each symmetry does to the model's tensors, by path.

    Rotations in front of equal gains come first, because another symmetry may move the gains.

    Args:
        model: the model in which the symmetries were found.
        symmetries: the symmetries, applied in order, and in reverse order if the norm is negative.
        norm: the norm of each generator; ``-norm`` undoes ``norm``, and 0 does nothing.
        seed: at least 0.

    Raises:
        ValueError: if the norm is not finite, the seed is negative, the symmetries belong to
            another model, or a stream would be rotated in front of gains that differ.
    """
    if not math.isfinite(norm):
        raise ValueError(f"norm must be finite, found {norm}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}")
    ordered = sorted(symmetries, key=lambda symmetry: not symmetry.blurs)
    if norm < 0:
        ordered.reverse()
    for symmetry in ordered:
        for slot in symmetry.slots:
            require(model, symmetry, slot)
    ordered = [symmetry for symmetry in ordered if norm != 0 and symmetry.slots]
    devices = [tensor_at(model, symmetry.slots[0].path).device for symmetry in ordered]
    found = touches_of(zip(ordered, random_elements(ordered, norm, seed, devices), strict=True))
    for symmetry in ordered:
        for path in symmetry.blurs:
            _require_equal(model, symmetry, path, found.get(path, []) if norm < 0 else [])
    return found


def touches_of(elements: Iterable[tuple[Symmetry, Element]]) -> Touches:
    """What given elements do to a model's tensors, by path, in the order in which they come."""
    found: Touches = {}
    for symmetry, element in elements:
        for is_incoming, slots in ((True, symmetry.incoming), (False, symmetry.outgoing)):
            for slot in slots:
                touch = Touch(slot, symmetry, element.at(slot), is_incoming)
                found.setdefault(slot.path, []).append(touch)
    return found


def _require_equal(
    model: nn.Module, symmetry: Symmetry, path: str, before: Sequence[Touch]
) -> None:
    """Raise ``ValueError`` if gains differ by more than rounding, once they have been touched."""
    gains = tensor_at(model, path)
    if gains.is_meta:
        return
    gains = weights(gains, before).double()
    spread = gains.max() - gains.min()
    if bool(spread > 8 * torch.finfo(tensor_at(model, path).dtype).eps * gains.abs().max()):
        raise ValueError(
            f"symmetry {symmetry.short_name!r} wants equal entries of {path!r}, found "
            f"{float(gains.min()):.6g} to {float(gains.max()):.6g}: list the symmetries of the "
            f"model as it is now"
        )


@torch.no_grad()
def move(model: nn.Module, found: Touches) -> None:
    """Move the weights, and the gradients that they hold, in place."""
    new: list[tuple[Tensor, Tensor]] = []
    for path, steps in found.items():
        tensor = tensor_at(model, path)
        new.append((tensor, weights(tensor, steps)))
        if tensor.grad is not None:
            new.append((tensor.grad, gradients(tensor.grad, steps)))
    # If computing one tensor fails, no other has been changed yet.
    for tensor, value in new:
        tensor.copy_(value)


@torch.no_grad()
def move_for_a_trial(model: nn.Module, found: Touches) -> None:
    """Move only the weights, unnoticed by graphs that still wait for their backward pass."""
    new = [(tensor_at(model, path), steps) for path, steps in found.items()]
    for tensor, value in [(tensor, weights(tensor, steps)) for tensor, steps in new]:
        tensor.data.copy_(value)
