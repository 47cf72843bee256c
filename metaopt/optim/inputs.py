"""What a step is given, options, loss and gradients: refused where rules cannot take it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from metaopt.optim.rates import Rate, Rates

_OPTIONS = {"lr": None, "weight_decay": None, "learned_decay": 1.0}
"""With what holds for groups that an older version saved without it; None where all have it."""


def rates(groups: Sequence[Mapping[str, Any]]) -> list[Rates]:
    """The options of each group, which a scheduler or a user may have set since the last step.

    Raises:
        ValueError: where one is missing, or is no finite number of at least 0.
    """
    return [
        Rates(
            **{
                name: _rate(f"param_groups[{g}] {name}", group.get(name, default))
                for name, default in _OPTIONS.items()
            }
        )
        for g, group in enumerate(groups)
    ]


def _rate(field: str, value: Any) -> Rate:
    number = value
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        number = value.item()
    # A number of Python may be larger than any float.
    if not isinstance(number, Real) or not _is_within(number):
        raise ValueError(f"{field}: found {number!r}, expected a finite number of at least 0")
    return value.reshape(()) if isinstance(value, Tensor) else float(number)


def _is_within(number: Any) -> bool:
    return bool(0 <= number <= sys.float_info.max)


def loss_of(returned: Any) -> Tensor | None:
    """The loss that a closure returned, as rules are given it; None where it returned None.

    Raises:
        ValueError: where it is no real number and no tensor of one entry.
    """
    if returned is None:
        return None
    if isinstance(returned, Tensor):
        if returned.numel() == 1 and not returned.is_complex():
            return returned.detach().reshape(())
        found = f"a tensor of shape {list(returned.shape)} and {returned.dtype}"
    elif isinstance(returned, Real):
        return torch.tensor(float(returned), dtype=torch.float64, device="cpu")
    else:
        found = f"a {type(returned).__name__}"
    raise ValueError(
        f"closure: found that it returns {found}, expected the loss that backward was called on, a "
        f"number or a tensor of one entry, or None"
    )


def require_no_capture(device: torch.device) -> None:
    """Refuse steps within ``torch.cuda.graph``.

    Args:
        device: the device of the parameters.

    Raises:
        RuntimeError: a replay would take the same step from the same state again and again.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "LearnedOptimizer takes no steps within a CUDA graph, as its state moves to other "
            "memory at each: capture the forward and backward pass, and call step() after replay()"
        )


def require_gradients(parameters: Sequence[Tensor], names: Mapping[int, str]) -> None:
    """Refuse gradients that are no real tensor of their parameter's shape beside it.

    Args:
        parameters: those without a gradient are passed over.
        names: the names of the parameters, by their ``id``.

    Raises:
        RuntimeError: for the first such gradient.
    """
    for p in parameters:
        if p.grad is None:
            continue
        if p.grad.layout != torch.strided:
            raise RuntimeError(
                f"the gradient of {names[id(p)]} is sparse, and LearnedOptimizer takes no sparse "
                f"gradients: use sparse=False"
            )
        if p.grad.is_complex() or (p.grad.shape, p.grad.device) != (p.shape, p.device):
            raise RuntimeError(
                f"the gradient of {names[id(p)]}: found {_described(p.grad)}, expected real "
                f"numbers as {_described(p)}: call backward() after a parameter has changed"
            )


def _described(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{list(tensor.shape)} of {dtype} on {tensor.device}"
