"""Parameters in half precision, without the loss of small updates.

bfloat16 holds 8 significant bits: an update below 1/512 of a weight would be rounded away, however
often it comes. Rules work on a copy in float32 instead, kept with the state, and the parameter is
that copy rounded:

    v <- step(v),   w <- round(v)

4 bytes a parameter, beside the 320 of two LSTM cells of 20. Where the parameter was changed from
outside (loaded, clipped, averaged) and is no longer the rounded copy, it counts, entry by entry.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, MutableMapping
from itertools import chain

import torch
from torch import Tensor

from metaopt.rules.composed import MetaOptimizer

UNROUNDED = "unrounded"
"""The copy's name in the state of a parameter."""

HALF = (torch.bfloat16, torch.float16)


def working_dtype(parameters: Iterable[Tensor]) -> torch.dtype:
    """Of the rules: float64 where a parameter has it, else float32.

    Raises:
        ValueError: where a parameter is none of float16, bfloat16, float32 and float64.
    """
    found = {parameter.dtype for parameter in parameters}
    known = {torch.float32, torch.float64, *HALF}
    if not found <= known:
        names = ", ".join(sorted(str(dtype) for dtype in found - known))
        raise ValueError(f"parameters must be float16, bfloat16, float32 or float64, found {names}")
    return torch.float64 if torch.float64 in found else torch.float32


def matching(optimizer: MetaOptimizer, device: torch.device, dtype: torch.dtype) -> MetaOptimizer:
    """The meta-optimizer itself where its device and dtype are these, else a copy."""
    own = next(chain(optimizer.parameters(), optimizer.buffers()), None)
    if own is None or (own.device, own.dtype) == (device, dtype):
        return optimizer
    return copy.deepcopy(optimizer).to(device, dtype)


def cast_with_graph(
    optimizer: MetaOptimizer, device: torch.device, dtype: torch.dtype
) -> MetaOptimizer:
    """A copy elsewhere or in another precision, through which gradients reach the original."""
    cast = copy.deepcopy(optimizer)
    for name, parameter in optimizer.named_parameters():
        owner, _, own_name = name.rpartition(".")
        module = cast.get_submodule(owner)
        delattr(module, own_name)
        # No parameter of its own, which would be a leaf.
        setattr(module, own_name, parameter.to(device, dtype))
    return cast.to(device, dtype)


def unrounded(parameter: Tensor, state: MutableMapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The parameter as rules see it, in ``dtype``."""
    copy = state.get(UNROUNDED)
    if parameter.dtype not in HALF or copy is None:
        return parameter.to(dtype)
    return torch.where(copy.to(parameter.dtype) == parameter, copy, parameter.to(dtype))


def write(parameter: Tensor, value: Tensor, state: MutableMapping[str, Tensor]) -> None:
    """Write a value into a parameter, rounded to its precision."""
    parameter.copy_(value)
    if parameter.dtype in HALF:
        state[UNROUNDED] = value
