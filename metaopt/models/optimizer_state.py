"""What becomes of an optimizer's state when the weights are teleported under it.

    w -> a w,   m -> a^-T m,   v -> (a^-T)^2 v

for momenta m, linear in gradients, and second moments v, linear in their squares entry by entry.
The first is exact for every group, the second for positive scaling (D^-2 where D scales) and for
permutations. Under a general matrix the new second moments depend on products of different entries
of the gradient, which no optimizer here keeps: the state of those parameters is reset, step count
included, so that Adam's correction of its bias starts again. (Coupled weight decay adds weights to
the gradient, and these move by a and not by a^-T: there the transport is as good as the decay is
small.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from metaopt.models.elements import Touch
from metaopt.models.movement import Touches, tensor_at

DEGREES: dict[type[Optimizer], dict[str, int]] = {
    SGD: {"momentum_buffer": 1},
    Adam: {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    AdamW: {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    Adagrad: {"sum": 2},
}
"""Optimizer -> name of a tensor of its state -> its degree in the gradient."""


def reset(optimizer: Optimizer, model: nn.Module, found: Touches) -> None:
    """Forget the state of every parameter that is moved."""
    for path in found:
        optimizer.state.pop(tensor_at(model, path), None)


@torch.no_grad()
def transport(optimizer: Optimizer, model: nn.Module, found: Touches) -> None:
    """Move the state with the weights, or forget it parameter by parameter where that is unknown.

    Raises:
        ValueError: for an optimizer of which it is not known what its state is.
    """
    degrees = _degrees(optimizer)
    for path, steps in found.items():
        state = optimizer.state.get(tensor_at(model, path), {})
        new = {
            name: _moved(state[name].double(), steps, degree)
            for name, degree in degrees.items()
            if isinstance(state.get(name), Tensor)
        }
        if any(value is None for value in new.values()):
            optimizer.state.pop(tensor_at(model, path))
            continue
        for name, value in new.items():
            state[name].copy_(value)


def _degrees(optimizer: Optimizer) -> dict[str, int]:
    try:
        return DEGREES[type(optimizer)]
    except KeyError:
        known = ", ".join(kind.__name__ for kind in DEGREES)
        raise ValueError(
            f"state='transport' is known for {known}, found {type(optimizer).__name__}: "
            f"use state='reset'"
        ) from None


def _moved(value: Tensor, steps: list[Touch], degree: int) -> Tensor | None:
    for touch in steps:
        moved = touch.gradients(value) if degree == 1 else touch.squares(value)
        if moved is None:
            return None
        value = moved
    return value


POLICIES: dict[str, Callable[[Optimizer, nn.Module, Touches], None]] = {
    "transport": transport,
    "reset": reset,
}
