"""A window of a large meta-batch in groups of trajectories, one after the other: less memory.

    M = sum_g (n_g / B) M_g,   dM/dphi = sum_g (n_g / B) dM_g/dphi

A meta-loss is a mean over trajectories, so that the meta-gradient of the whole is that of its
groups, up to rounding. The graph of a window is kept for one group at a time; besides it there are
the states of all trajectories, before and after. What happens next (the mean over processes, the
clip, leaving out what is not finite) is done once, with the sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metaopt.meta.looks import Observe
from metaopt.meta.rows import across, into, part, room
from metaopt.meta.unroll import InnerState, start, unroll
from metaopt.meta.windows import Differentiated, Windows, together
from metaopt.rules.composed import MetaOptimizer, States, tensors_of
from metaopt.tasks.base import Tasks

ALWAYS_WHOLE = 64
"""Trajectories up to which a window is run as a whole, unless ``meta.group`` is smaller."""
GRAPH_BYTES = 2**31
"""What the graph of a window may take, by estimate."""


class Grouped(Windows):
    """Runs a window group by group; one whose trajectories all fit is run as it is.

    Args:
        windows: runs the window of a group.
        optimizer: the meta-optimizer; its parameters are phi.
        size: the most trajectories of a group.
    """

    def __init__(self, windows: Windows, optimizer: MetaOptimizer, size: int) -> None:
        self._windows = windows
        self._optimizer = optimizer
        self._size = size
        self._kept: tuple[Tasks, int, list[Tasks]] | None = None

    def fitting(self, tasks: Tasks, steps: int) -> int:
        """The most trajectories of a group in a window of so many steps."""
        return self._size

    def __call__(self, tasks: Tasks, inner: InnerState[States], steps: int) -> Differentiated:
        """See ``Windows.__call__``."""
        most = self.fitting(tasks, steps)
        if tasks.size <= most:
            return self._windows(tasks, inner, steps)
        batch, rules = tasks.size, self._optimizer.rules
        parameters = list(self._optimizer.parameters())
        gradients: list[Tensor | None] = [None] * len(parameters)
        found: list[Differentiated] = []
        shares: list[float] = []
        after: InnerState[States] | None = None
        for own, own_tasks in self._groups(tasks, most):
            one = self._windows(own_tasks, across([inner], part(batch, own), rules), steps)
            share = (own.stop - own.start) / batch
            for i, parameter in enumerate(parameters):
                if parameter.grad is not None:
                    before = gradients[i]
                    # A copy: a replayed window writes the next gradient to the same place.
                    gradient = parameter.grad * share
                    gradients[i] = gradient if before is None else before.add_(gradient)
            if after is None:
                after = across([one.inner], room(batch, own.stop - own.start), rules)
            after = across([after, one.inner], into(own), rules)
            numbers = {name: number.clone() for name, number in one.teleports.items()}
            found.append(Differentiated(inner, one.meta_loss.clone(), numbers))
            shares.append(share)
        assert after is not None
        for parameter, total in zip(parameters, gradients, strict=True):
            parameter.grad = total
        losses = torch.stack([one.meta_loss for one in found])
        loss = (losses * losses.new_tensor(shares)).sum()
        after = replace(after, step=inner.step + steps)
        return Differentiated(after, loss, together(found, shares))

    def state(self) -> dict[str, Any]:
        """See ``Windows.state``."""
        return self._windows.state()

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Windows.restore``."""
        self._windows.restore(state)

    def _groups(self, tasks: Tasks, most: int) -> Iterator[tuple[slice, Tasks]]:
        """The groups and where they lie; kept, with the decompositions of their data."""
        if self._kept is None or self._kept[0] is not tasks or self._kept[1] != most:
            self._kept = tasks, most, tasks.in_parts(most)
        first = 0
        for own in self._kept[2]:
            yield slice(first, first + own.size), own
            first += own.size


class Fitting(Grouped):
    """Groups of as many trajectories as ``GRAPH_BYTES`` hold, by estimate; small batches whole.

    The estimate is the graph of the first step of one trajectory: it depends on the tasks and the
    rules, and on no machine, so that a run that resumes has the groups that it had.

    Args:
        windows: runs the window of a group.
        optimizer: the meta-optimizer.
        observe: how weights are looked at.
    """

    def __init__(self, windows: Windows, optimizer: MetaOptimizer, observe: Observe) -> None:
        super().__init__(windows, optimizer, ALWAYS_WHOLE)
        self._observe = observe
        self._of_step: tuple[Tasks, int] | None = None

    def fitting(self, tasks: Tasks, steps: int) -> int:
        """The most trajectories of a group in a window of so many steps."""
        if tasks.size <= self._size:
            return self._size
        if self._of_step is None or self._of_step[0] is not tasks:
            one = tasks.select(slice(0, 1))
            self._of_step = tasks, graph_bytes_of_step(one, self._optimizer, self._observe)
        return max(1, GRAPH_BYTES // (steps * self._of_step[1]))


def graph_bytes_of_step(tasks: Tasks, optimizer: MetaOptimizer, observe: Observe) -> int:
    """What the graph of the first inner step keeps for the backward pass, in bytes, at least 1.

    Args:
        tasks: one task.
        optimizer: takes the step.
        observe: how weights are looked at.
    """
    after, unrolled = unroll(tasks, optimizer, start(tasks, optimizer, observe), 1, observe)
    states = (tensor for _, _, tensor in tensors_of(after.optimizer))
    kept: dict[int, int] = {}
    for tensor in _saved([unrolled.losses, *after.weights, *states]):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
    own = {parameter.untyped_storage().data_ptr() for parameter in optimizer.parameters()}
    return max(1, sum(size for place, size in kept.items() if place not in own))


def _saved(roots: list[Tensor]) -> Iterator[Tensor]:
    """All tensors that the nodes of a graph keep, but for those that a node refuses to show."""
    waiting = [root.grad_fn for root in roots if root.grad_fn is not None]
    reached: set[Any] = set()
    while waiting:
        node: Any = waiting.pop()
        if node in reached:
            continue
        reached.add(node)
        waiting += [following for following, _ in node.next_functions if following is not None]
        names = [name for name in dir(node) if name.startswith("_saved_")]
        for name in [*names, "saved_tensors"]:
            try:
                value = getattr(node, name, ())
            except RuntimeError:
                continue
            values = value if isinstance(value, tuple | list) else (value,)
            yield from (one for one in values if isinstance(one, Tensor))
