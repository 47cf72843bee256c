"""Moves the tensors of a model under a teleport: computed in float64, written all together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaopt.symmetry.elements import Touch, random_element
from metaopt.symmetry.groups import Slot, Symmetry

Touches = dict[str, list[Touch]]
"""Path of a tensor -> what is done to it, in order."""


def tensor_at(model: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at a path; raises ``AttributeError`` if there is none."""
    owner, _, name = path.rpartition(".")
    tensor = getattr(model.get_submodule(owner), name)
    if not isinstance(tensor, Tensor):
        raise AttributeError(f"{path} is no tensor")
    return tensor


def _check(model: nn.Module, symmetry: Symmetry, slot: Slot) -> None:
    try:
        shape = tensor_at(model, slot.path).shape
    except AttributeError as error:
        message = f"symmetry {symmetry.name!r}: the model has no tensor {slot.path!r}"
        raise ValueError(message) from error
    stop = slot.start + slot.outer * symmetry.blocks * symmetry.size * slot.inner
    if slot.axis >= len(shape) or stop > shape[slot.axis] * slot.groups:
        raise ValueError(
            f"symmetry {symmetry.name!r} needs {stop} entries on axis {slot.axis} of "
            f"{slot.path!r}, found shape {list(shape)}"
        )


def touches(model: nn.Module, symmetries: Sequence[Symmetry], norm: float, seed: int) -> Touches:
    """What a random element of each symmetry does to the model's tensors, by path.

    Args:
        model: the model in which the symmetries were found.
        symmetries: the symmetries, applied in order, and in reverse order if the norm is negative.
        norm: the norm of each generator; ``-norm`` undoes ``norm``, and 0 does nothing.
        seed: at least 0.

    Raises:
        ValueError: if the norm is not finite, the seed is negative, or the symmetries belong to
            another model.
    """
    if not math.isfinite(norm):
        raise ValueError(f"norm must be finite, found {norm}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}")
    found: Touches = {}
    for symmetry in symmetries if norm > 0 else list(reversed(symmetries)):
        for slot in symmetry.slots:
            _check(model, symmetry, slot)
        if norm == 0:
            continue
        device = tensor_at(model, symmetry.incoming[0].path).device
        element = random_element(symmetry, norm, seed, device)
        for is_incoming, slots in ((True, symmetry.incoming), (False, symmetry.outgoing)):
            for slot in slots:
                touch = Touch(slot, symmetry, element, is_incoming)
                found.setdefault(slot.path, []).append(touch)
    return found


def _moved(tensor: Tensor, steps: list[Touch]) -> Tensor:
    weights = tensor.detach().double()
    for touch in steps:
        weights = touch.weights(weights)
    return weights


@torch.no_grad()
def move(model: nn.Module, found: Touches) -> None:
    """Move the weights, and the gradients that they hold, in place."""
    new: list[tuple[Tensor, Tensor]] = []
    for path, steps in found.items():
        tensor = tensor_at(model, path)
        new.append((tensor, _moved(tensor, steps)))
        if tensor.grad is not None:
            gradients = tensor.grad.double()
            for touch in steps:
                gradients = touch.gradients(gradients)
            new.append((tensor.grad, gradients))
    # If computing one tensor fails, no other has been changed yet.
    for tensor, value in new:
        tensor.copy_(value)


def move_for_a_trial(model: nn.Module, found: Touches) -> None:
    """Move only the weights, unnoticed by graphs that still wait for their backward pass."""
    new = [(tensor_at(model, path), steps) for path, steps in found.items()]
    for tensor, value in [(tensor, _moved(tensor, steps)) for tensor, steps in new]:
        tensor.data.copy_(value)
