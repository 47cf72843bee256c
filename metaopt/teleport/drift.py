"""What a move does to a model's outputs and loss, before it is made: drift, and what refuses it.

    drift = ||f(w') - f(w)|| / (||f(w)|| + ||Y||)

Y are the targets where they are shaped like the outputs; labels do not count.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt.landscape.data import Data, arguments_of, tensors_of
from metaopt.landscape.samples import Loss, Samples
from metaopt.symmetry.motion import Tensors

ROUNDING = 64
"""Drifts below so many units of rounding of the weights' dtype are never refused."""


class DriftError(ValueError):
    """A teleport would change the model's outputs by more than the tolerance; nothing was moved."""


def called(model: nn.Module, values: Tensors, inputs: Any) -> Any:
    """f(inputs) with other parameters and buffers; the model's own stay as they are."""
    # A forward pass may write into buffers.
    buffers = {path: values.get(path, b).clone() for path, b in model.named_buffers()}
    given = {**values, **buffers}
    return functional_call(model, given, *arguments_of(inputs))


@dataclass(frozen=True)
class Change:
    """What a move does on some data.

    Attributes:
        drift: of the outputs; NaN without data, infinite if the outputs are no numbers.
        loss: L(w') - L(w); NaN without a loss.
    """

    drift: float = math.nan
    loss: float = math.nan


@torch.no_grad()
def change(
    model: nn.Module, values: Tensors, new: Tensors, data: Data | None, loss: Loss | None = None
) -> Change:
    """What a move does to a model's outputs, and to its loss if one is given.

    Args:
        model: the model.
        values: its parameters and buffers, by path.
        new: those that move, after it.
        data: a pair (inputs, targets), or an iterable of such pairs; None: nothing is measured.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
    """
    if data is None:
        return Change()
    samples = Samples(model, loss or _nothing, data)
    cuda = [str(v.device) for v in values.values() if v.device.type == "cuda"][:1]
    moved = size = wanted = more = 0.0
    for inputs, targets in samples.batches():
        found = []
        for at in (values, {**values, **new}):
            # Both see the same random numbers, if the model draws any.
            with torch.random.fork_rng(cuda):
                outputs = called(model, at, inputs)
            found.append(_outputs(outputs))
            sign = 1 if len(found) == 2 else -1
            more += sign * len(targets) / samples.count * float(samples.loss(outputs, targets))
        old, now = found
        moved += sum(float((b - a).square().sum()) for a, b in zip(old, now, strict=True))
        size += sum(float(a.square().sum()) for a in old)
        if targets.is_floating_point() and len(old) == 1 and old[0].shape == targets.shape:
            wanted += float(targets.double().square().sum())
    scale = math.sqrt(size) + math.sqrt(wanted)
    ratio = 0.0 if moved == 0 else math.sqrt(moved) / max(scale, sys.float_info.min)
    return Change(math.inf if math.isnan(ratio) else ratio, math.nan if loss is None else more)


def _nothing(outputs: Any, targets: Tensor) -> Tensor:
    return torch.zeros(())


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
