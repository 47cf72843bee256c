"""Rows of inner states: taking those of some trajectories out, and putting them together again.

Trajectories lie along the first axis of weights and observations, and along ``Rule.batch_axis`` of
a rule's tensors, where one trajectory may have several rows. Tensors without axes, and what is no
tensor, belong to all trajectories alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from metaopt.meta.unroll import InnerState
from metaopt.rules.base import Rule
from metaopt.rules.composed import States
from metaopt.tasks.base import Observation

Rows = Callable[[Sequence[Tensor], int], Tensor]
"""(the same tensor of some states, the axis of its trajectories) -> that of one state."""


def across(
    states: Sequence[InnerState[States]], rows: Rows, rules: Mapping[str, Rule]
) -> InnerState[States]:
    """Combine states tensor by tensor.

    Args:
        states: of the same tasks, rules and step.
        rows: makes a tensor of theirs, each with at least one axis.
        rules: by name.
    """

    def of(tensors: Sequence[Tensor], axis: int) -> Tensor:
        return tensors[0] if tensors[0].ndim == 0 else rows(tensors, axis)

    def made(values: Sequence[Any]) -> Any:
        if isinstance(values[0], tuple):
            return tuple(made(column) for column in zip(*values, strict=True))
        return of(values, 0) if isinstance(values[0], Tensor) else values[0]

    observed = {
        field.name: made([getattr(state.observation, field.name) for state in states])
        for field in fields(Observation)
    }
    optimizer = {
        name: {
            key: of([state.optimizer[name][key] for state in states], rules[name].batch_axis)
            for key in own
        }
        for name, own in states[0].optimizer.items()
    }
    return InnerState(
        states[0].step,
        made([state.weights for state in states]),
        made([state.loss for state in states]),
        Observation(**observed),
        optimizer,
    )


def member(batch: int, copies: int, copy: int) -> Rows:
    """The rows of one copy, where the copies of each trajectory are neighbours."""

    def rows(tensors: Sequence[Tensor], axis: int) -> Tensor:
        split = tensors[0].unflatten(axis, (batch, copies, -1))
        return split.select(axis + 1, copy).flatten(axis, axis + 1)

    return rows


def side_by_side(batch: int) -> Rows:
    """Join the rows of all copies so that the copies of each trajectory are neighbours."""

    def rows(tensors: Sequence[Tensor], axis: int) -> Tensor:
        split = [tensor.unflatten(axis, (batch, -1)) for tensor in tensors]
        return torch.stack(split, dim=axis + 1).flatten(axis, axis + 2)

    return rows


def part(batch: int, share: slice) -> Rows:
    """The rows of the trajectories ``share`` of ``batch``, as a view."""

    def rows(tensors: Sequence[Tensor], axis: int) -> Tensor:
        each = tensors[0].shape[axis] // batch
        return tensors[0].narrow(axis, each * share.start, each * (share.stop - share.start))

    return rows


def room(batch: int, count: int) -> Rows:
    """Memory for the rows of ``batch`` trajectories, like that of ``count`` of them."""

    def rows(tensors: Sequence[Tensor], axis: int) -> Tensor:
        shape = list(tensors[0].shape)
        shape[axis] = shape[axis] // count * batch
        return tensors[0].new_empty(shape)

    return rows


def into(share: slice) -> Rows:
    """Write a part's rows, the second state's, to where they belong in the whole, the first."""

    def rows(tensors: Sequence[Tensor], axis: int) -> Tensor:
        whole, own = tensors
        each = own.shape[axis] // (share.stop - share.start)
        whole.narrow(axis, each * share.start, own.shape[axis]).copy_(own)
        return whole

    return rows
