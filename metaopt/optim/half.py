"""Parameters in half precision, without the loss of small updates.

bfloat16 holds 8 significant bits: an update below 1/512 of a weight would be rounded away, however
often it comes. Rules work on a copy in float32 instead, kept with the state, and the parameter is
that copy rounded:

    v <- step(v),   w <- round(v)

The copy takes 4 bytes for each parameter; the state of two LSTM cells of size 20 takes 320. If an
entry of the parameter was changed from outside (loaded, clipped, averaged), so that it is no longer
the rounded copy, the parameter's own value is used for that entry.
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
    """The dtype that rules compute in: float64 if a parameter is float64, else float32.

    Raises:
        ValueError: if a parameter is not float16, bfloat16, float32 or float64.
    """
    found = {parameter.dtype for parameter in parameters}
    known = {torch.float32, torch.float64, *HALF}
    if not found <= known:
        names = ", ".join(sorted(str(dtype) for dtype in found - known))
        raise ValueError(f"parameters must be float16, bfloat16, float32 or float64, found {names}")
    return torch.float64 if torch.float64 in found else torch.float32


def matching(optimizer: MetaOptimizer, device: torch.device, dtype: torch.dtype) -> MetaOptimizer:
    """The meta-optimizer itself if its device and dtype are these, else a copy."""
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
        # A Parameter would be a leaf and cut the graph, so a plain tensor takes its place.
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
