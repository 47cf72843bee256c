"""One truncation window and its meta-gradient: run step by step, or replayed as a CUDA graph.

    M = l(L(w_t); L(w_{t+1}), .., L(w_{t+K}))

A window is K inner steps (``unroll``). Running it writes dM/dphi into ``grad`` of the parameters.
On a CUDA device a window is thousands of small kernels, and launching them takes longer than
running them. ``Replayed`` records them once, on memory of fixed addresses, and replays the
recording.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metaopt.meta.looks import Observe
from metaopt.meta.loss import MetaLoss
from metaopt.meta.unroll import Advance, InnerState, operation_by_operation, resume, unroll
from metaopt.rules.composed import MetaOptimizer, States
from metaopt.tasks.base import Hidden, Tasks
from metaopt.tasks.regression import TaskBatch

WARM_UP = 3
"""Runs before a recording, in which libraries choose their kernels and allocate memory."""


@dataclass(frozen=True)
class Differentiated:
    """What a window computed besides the meta-gradient; its tensors have no graph.

    Attributes:
        inner: the inner state after the window.
        meta_loss: M, a scalar.
        teleports: the ``TeleportTrace.summary`` of the window; empty without teleports.
    """

    inner: InnerState[States]
    meta_loss: Tensor
    teleports: dict[str, Tensor]


class Windows(ABC):
    """Runs truncation windows and differentiates their meta-loss.

    Attributes:
        copies: how many copies of each trajectory run side by side. The copies of one trajectory
            are neighbours on the batch axis of the tasks and of the inner state.
    """

    copies: int = 1

    @abstractmethod
    def __call__(self, tasks: Tasks, inner: InnerState[States], steps: int) -> Differentiated:
        """Run one window; ``grad`` of the parameters is replaced by its meta-gradient.

        Args:
            tasks: the tasks of all copies.
            inner: the inner state at the start of the window.
            steps: K.
        """

    def state(self) -> dict[str, Any]:
        """Plain data and tensors that later windows need besides ``inner``, equal everywhere."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; raises ``ValueError`` if another kind of windows wrote it."""
        if state:
            raise ValueError(f"windows without a state were given {', '.join(state)}")


@dataclass(frozen=True)
class StepByStep(Windows):
    """Runs a window step by step and backpropagates with torch's autograd.

    Args:
        optimizer: the meta-optimizer; its parameters are phi.
        observe: how weights are looked at: first or second order.
        meta_loss: l, the meta-loss of a window.
        advance: how a step is taken.
    """

    optimizer: MetaOptimizer
    observe: Observe
    meta_loss: MetaLoss
    advance: Advance = operation_by_operation

    def __call__(self, tasks: Tasks, inner: InnerState[States], steps: int) -> Differentiated:
        """See ``Windows.__call__``."""
        self.optimizer.zero_grad()
        after, unrolled = unroll(
            tasks, self.optimizer, inner, steps, self.observe, advance=self.advance
        )
        loss = self.meta_loss(inner.loss.detach(), unrolled.losses)
        loss.backward()
        summary = {} if unrolled.teleports is None else unrolled.teleports.summary()
        return Differentiated(after.detach(), loss.detach(), summary)


def together(parts: Sequence[Differentiated], shares: Sequence[float]) -> dict[str, Tensor]:
    """One ``TeleportTrace.summary`` of several: means of means, maxima of maxima.

    Args:
        parts: windows of other trajectories, or of copies of the same ones.
        shares: the share of each in the means.
    """
    found = {}
    for name in parts[0].teleports:
        numbers = torch.stack([part.teleports[name] for part in parts])
        is_maximum = name.endswith("_max")
        found[name] = numbers.amax() if is_maximum else (numbers * numbers.new_tensor(shares)).sum()
    return found


Compute = Callable[[], Differentiated]
Record = Callable[[Compute], tuple[Differentiated, Callable[[], None]]]
"""run -> (what it computed, a replay that computes it again in the same memory)."""


def cuda_graph(run: Compute) -> tuple[Differentiated, Callable[[], None]]:
    """Record ``run`` as a CUDA graph.

    Returns:
        The result of ``run``, and a function that replays the recording and so overwrites the
        tensors of that result.
    """
    before, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    before.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return result, graph.replay


class Replayed(Windows):
    """Records one window for each length, batch and set of hidden fields, then replays it.

    The next replay of a window of the same kind overwrites what the last one returned.

    Args:
        windows: runs the window that is recorded.
        record: makes the recording.
    """

    def __init__(self, windows: StepByStep, record: Record = cuda_graph) -> None:
        self._windows = windows
        self._record = record
        self._recordings: dict[tuple[int, int, Hidden], _Recording] = {}

    def __call__(self, tasks: Tasks, inner: InnerState[States], steps: int) -> Differentiated:
        """See ``Windows.__call__``."""
        assert isinstance(tasks, TaskBatch)
        kind = steps, tasks.size, tasks.hides
        recording = self._recordings.get(kind)
        if recording is None:
            recording = _Recording(self._windows, self._record, tasks, inner, steps)
            self._recordings[kind] = recording
        return recording.replay(tasks, inner)


class _Recording:
    """One recorded window, on its own copies of the data, the weights and the rules' states.

    ``replay`` fills these copies and leaves the meta-gradient in ``grad``. The observation at the
    start of the window is computed again from the weights.
    """

    def __init__(
        self,
        windows: StepByStep,
        record: Record,
        tasks: TaskBatch,
        inner: InnerState[States],
        steps: int,
    ) -> None:
        self._reads_inverse = windows.optimizer.reads_data
        # What is computed of the data, such as the decomposition that gives X^+, is copied too.
        data = tasks.data(self._reads_inverse)
        self._data = {name: tensor.clone() for name, tensor in data.items()}
        self._tasks = tasks.with_data(self._data)
        self._weights = tuple(W.clone() for W in inner.weights)
        self._states: States = {
            rule: {key: value.clone() for key, value in own.items()}
            for rule, own in inner.optimizer.items()
        }
        self._steps = steps
        self._parameters = list(windows.optimizer.parameters())

        def run() -> Differentiated:
            start = resume(self._tasks, 0, self._weights, self._states, windows.observe)
            return windows(self._tasks, start, steps)

        self._result, self._replay = record(run)
        self._grads = [parameter.grad for parameter in self._parameters]

    def replay(self, tasks: TaskBatch, inner: InnerState[States]) -> Differentiated:
        for name, tensor in tasks.data(self._reads_inverse).items():
            self._data[name].copy_(tensor)
        for own, W in zip(self._weights, inner.weights, strict=True):
            own.copy_(W)
        for rule, own_state in self._states.items():
            for key, value in own_state.items():
                value.copy_(inner.optimizer[rule][key])
        self._replay()
        for parameter, G in zip(self._parameters, self._grads, strict=True):
            parameter.grad = G
        after = replace(self._result.inner, step=inner.step + self._steps)
        return replace(self._result, inner=after)
