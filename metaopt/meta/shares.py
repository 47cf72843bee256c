"""Shares trajectories among processes, and joins their losses, teleports and inner states.

The inner state of a meta-batch is kept in parts, one for each process. A run that resumes on the
same number of processes takes its own part as it was, bit for bit. On another number the parts are
joined along the axis of the trajectories and cut anew. That axis is the first of weights; of a
rule's tensors it is ``Rule.batch_axis``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.base.process import World
from metaopt.meta.unroll import InnerState
from metaopt.rules.base import Rule
from metaopt.rules.composed import States
from metaopt.teleport.base import TeleportTrace

Part = dict[str, Any]
"""``count`` of trajectories, their ``weights``, the ``optimizer``'s tensors by rule and name."""


def gathered(
    world: World, losses: Tensor, teleports: TeleportTrace | None
) -> tuple[Tensor, TeleportTrace | None]:
    """Losses [steps + 1, B] and teleports of all processes, in order, in all of them.

    Args:
        world: the processes.
        losses: the losses of this process's tasks, [steps + 1, local].
        teleports: the teleports of this process's tasks, or None.
    """
    arrays = [losses]
    if teleports is not None:
        arrays += [teleports.norm, teleports.drift, teleports.refused, teleports.log_ratio]
    parts = world.gather([array.cpu() for array in arrays])
    whole, *traces = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    return whole, TeleportTrace(*traces) if traces else None


def part(inner: InnerState[States]) -> Part:
    """A copy of the inner state of this process's trajectories, on the CPU."""
    # Tensors are copied, since saving a view would save all the memory behind it.
    return {
        "count": inner.weights[0].shape[0],
        "weights": tuple(_copy(W) for W in inner.weights),
        "optimizer": {
            rule: {key: _copy(value) for key, value in own.items()}
            for rule, own in inner.optimizer.items()
        },
    }


def take(
    parts: Sequence[Part], share: slice, rules: Mapping[str, Rule], device: torch.device
) -> tuple[Weights, States]:
    """Weights and rule states of the trajectories ``share`` of the whole meta-batch.

    Args:
        parts: the parts of all processes, in order.
        share: which trajectories.
        rules: by name.
        device: the device of the tensors that are returned.

    Raises:
        KeyError, ValueError, RuntimeError: where the parts are none of these rules'.
    """
    ends = list(accumulate(part["count"] for part in parts))
    for own, end in zip(parts, ends, strict=True):
        if (end - own["count"], end) == (share.start, share.stop):
            weights = tuple(W.to(device) for W in own["weights"])
            return weights, {
                rule: {key: value.to(device) for key, value in state.items()}
                for rule, state in own["optimizer"].items()
            }
    layers = zip(*(part["weights"] for part in parts), strict=True)
    weights = tuple(_cut(layer, 0, share, ends[-1]).to(device) for layer in layers)
    states: States = {
        name: {
            key: _cut(
                [part["optimizer"][name][key] for part in parts],
                rules[name].batch_axis,
                share,
                ends[-1],
            ).to(device)
            for key in own
        }
        for name, own in parts[0]["optimizer"].items()
    }
    return weights, states


def _cut(tensors: Sequence[Tensor], axis: int, share: slice, batch: int) -> Tensor:
    """The rows of the trajectories ``share`` of tensors that are joined along ``axis``."""
    if tensors[0].ndim == 0:
        return tensors[0]
    whole = torch.cat(list(tensors), dim=axis)
    rows = whole.shape[axis] // batch
    own = whole.narrow(axis, share.start * rows, (share.stop - share.start) * rows)
    return own.clone(memory_format=torch.contiguous_format)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
