"""What a move does to a model's outputs and loss, before it is made: drift, and what refuses it.

    drift = ||f(w') - f(w)|| / (||f(w)|| + ||Y||)

Y are the targets where they are shaped like the outputs; labels do not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt.landscape.data import Data, tensors_of
from metaopt.landscape.samples import Samples
from metaopt.symmetry.motion import Tensors

ROUNDING = 64
"""Drifts below so many units of rounding of the weights' dtype are never refused."""


class DriftError(ValueError):
    """A teleport would change the model's outputs by more than the tolerance; nothing was moved."""


def tensors_at(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a model by path, detached."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {path: tensor.detach() for path, tensor in named.items()}


def called(model: nn.Module, values: Tensors, inputs: Any) -> Any:
    """f(inputs) with other parameters and buffers; the model's own stay as they are."""
    buffers = {path: b.clone() for path, b in model.named_buffers() if path not in values}
    given = {**buffers, **values}
    if isinstance(inputs, Mapping):
        return functional_call(model, given, (), dict(inputs))
    arguments = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return functional_call(model, given, arguments)


@torch.no_grad()
def drift(
    model: nn.Module, values: dict[str, Tensor], new: dict[str, Tensor], data: Data | None
) -> float:
    """The relative change of the outputs, NaN without data."""
    if data is None:
        return math.nan
    moved = size = wanted = 0.0
    for inputs, targets in Samples(model, lambda outputs, targets: targets, data).batches():
        # Both see the same random numbers, if the model draws any.
        with torch.random.fork_rng():
            state = torch.get_rng_state()
            old = _outputs(called(model, values, inputs))
            torch.set_rng_state(state)
            now = _outputs(called(model, new, inputs))
        moved += sum(float((b - a).square().sum()) for a, b in zip(old, now, strict=True))
        size += sum(float(a.square().sum()) for a in old)
        if targets.is_floating_point() and len(old) == 1 and old[0].shape == targets.shape:
            wanted += float(targets.double().square().sum())
    scale = math.sqrt(size) + math.sqrt(wanted)
    return math.sqrt(moved) / scale if scale > 0 else (0.0 if moved == 0 else math.inf)


def _outputs(outputs: Any) -> list[Tensor]:
    return [one.double() for one in tensors_of(outputs) if one.is_floating_point()]


def require_small(drifts: Sequence[float], new: dict[str, Tensor], tolerance: float) -> None:
    """Raise ``DriftError`` if a drift on the data, or on fresh data, exceeds the tolerance.

    Args:
        drifts: on the data and on fresh data; NaN where none were given.
        new: the tensors of the model after the move, whose dtype says what is rounding.
        tolerance: the largest drift.
    """
    dtypes = {value.dtype for value in new.values() if value.is_floating_point()}
    rounding = ROUNDING * max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
    for where, drift in zip(("the data", "fresh data"), drifts, strict=True):
        # Written so that an infinite drift is refused, and one that was not measured is not.
        if drift > max(tolerance, rounding):
            raise DriftError(
                f"the teleport changes the outputs on {where} by {drift:.1e} of their size, more "
                f"than the tolerance {tolerance:.1e}, and was not made: lower max_norm, leave out "
                f"the symmetry that is not exact, or raise tolerance"
            )


@torch.no_grad()
def mean_loss(samples: Samples, values: dict[str, Tensor]) -> float:
    """L at other parameters and buffers."""
    total = 0.0
    for inputs, targets in samples.batches():
        found = samples.loss(called(samples.model, values, inputs), targets)
        total += len(targets) / samples.count * float(found)
    return total
