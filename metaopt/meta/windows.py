"""One truncation window with its meta-gradient: step by step, or as the replay of a CUDA graph.

    M = l(L(w_t); L(w_{t+1}), .., L(w_{t+K})),   dM/dphi into the ``grad`` of the parameters

On a CUDA device a window is thousands of small kernels, whose launching takes longer than their
work. ``Replayed`` records them once, for memory that stays where it is, and replays the recording.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metaopt.meta.loss import MetaLoss
from metaopt.meta.unroll import InnerState, Observe, resume, unroll
from metaopt.rules.composed import MetaOptimizer, States
from metaopt.tasks.base import Hidden, Tasks
from metaopt.tasks.regression import TaskBatch

WARM_UP = 3
"""Runs before a recording: libraries choose their kernels and memory in the first ones."""


@dataclass(frozen=True)
class Differentiated:
    """What a window computed, beside the gradients; without a graph.

    Attributes:
        inner: the state after the window.
        meta_loss: M.
        teleports: ``TeleportTrace.summary``, empty without teleports.
    """

    inner: InnerState[States]
    meta_loss: Tensor
    teleports: dict[str, Tensor]


class Windows(ABC):
    """What runs truncation windows and differentiates their meta-loss.

    Attributes:
        copies: how often each trajectory of the meta-batch is run, one after another in each row
            of the tasks and of the inner state.
    """

    copies: int = 1

    @abstractmethod
    def __call__(self, tasks: Tasks, inner: InnerState[States], steps: int) -> Differentiated:
        """K = ``steps`` inner steps from ``inner``, and the meta-gradient of their losses."""

    def state(self) -> dict[str, Any]:
        """What later windows need beside ``inner``, alike in all processes; plain data, tensors."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; raises ``ValueError`` where it is not of such windows."""
        if state:
            raise ValueError(f"windows without a state were given {', '.join(state)}")


@dataclass(frozen=True)
class StepByStep(Windows):
    """Runs a window operation by operation, with torch's own differentiation.

    Args:
        optimizer: whose parameters are phi.
        observe: first or second order.
        meta_loss: of a window.
    """

    optimizer: MetaOptimizer
    observe: Observe
    meta_loss: MetaLoss

    def __call__(self, tasks: Tasks, inner: InnerState[States], steps: int) -> Differentiated:
        """K = ``steps`` inner steps from ``inner``, and the meta-gradient of their losses."""
        self.optimizer.zero_grad()
        after, unrolled = unroll(tasks, self.optimizer, inner, steps, self.observe)
        loss = self.meta_loss(inner.loss.detach(), unrolled.losses)
        loss.backward()
        summary = {} if unrolled.teleports is None else unrolled.teleports.summary()
        return Differentiated(after.detach(), loss.detach(), summary)


Compute = Callable[[], Differentiated]
Record = Callable[[Compute], tuple[Differentiated, Callable[[], None]]]
"""run -> (what it computed, a replay that computes it again in the same memory)."""


def cuda_graph(run: Compute) -> tuple[Differentiated, Callable[[], None]]:
    """Record ``run`` as a CUDA graph; after this call only its replay computes."""
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
    """Windows recorded once for each length (and what is hidden from the rules), then replayed.

    What a replay returns is overwritten by the next replay of a window of that kind.

    Args:
        windows: what is recorded.
        record: how.
    """

    def __init__(self, windows: StepByStep, record: Record = cuda_graph) -> None:
        self._windows = windows
        self._record = record
        self._recordings: dict[tuple[int, Hidden], _Recording] = {}

    def __call__(self, tasks: Tasks, inner: InnerState[States], steps: int) -> Differentiated:
        """K = ``steps`` inner steps from ``inner``, and the meta-gradient of their losses."""
        assert isinstance(tasks, TaskBatch)
        kind = steps, tasks.hides
        recording = self._recordings.get(kind)
        if recording is None:
            recording = _Recording(self._windows, self._record, tasks, inner, steps)
            self._recordings[kind] = recording
        return recording.replay(tasks, inner)


class _Recording:
    """A window over memory of its own: data, weights and rule states in; gradients and state out.

    The observation at its start is computed again from the weights.
    """

    def __init__(
        self,
        windows: StepByStep,
        record: Record,
        tasks: TaskBatch,
        inner: InnerState[States],
        steps: int,
    ) -> None:
        engine = windows.optimizer.engine
        self._needs_inverse = engine is not None and engine.reads_data
        self._tasks = replace(tasks, X=tasks.X.clone(), Y=tasks.Y.clone())
        if self._needs_inverse:
            # Filled from the tasks at hand: the decomposition behind it cannot be recorded.
            vars(self._tasks)["X_pinv"] = tasks.X_pinv.clone()
        self._weights = tuple(W.clone() for W in inner.weights)
        self._states: States = {
            rule: {key: value.clone() for key, value in own.items()}
            for rule, own in inner.optimizer.items()
        }
        self._steps = steps
        self._parameters = list(windows.optimizer.parameters())

        def run() -> Differentiated:
            # Computed in the recording, from the Y that is then there.
            vars(self._tasks).pop("target_norm", None)
            start = resume(self._tasks, 0, self._weights, self._states, windows.observe)
            return windows(self._tasks, start, steps)

        self._result, self._replay = record(run)
        self._grads = [parameter.grad for parameter in self._parameters]

    def replay(self, tasks: TaskBatch, inner: InnerState[States]) -> Differentiated:
        self._tasks.X.copy_(tasks.X)
        self._tasks.Y.copy_(tasks.Y)
        if self._needs_inverse:
            self._tasks.X_pinv.copy_(tasks.X_pinv)
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
