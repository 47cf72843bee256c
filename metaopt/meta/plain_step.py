"""One inner step, and the look at the weights after it, as a function of tensors and nothing else.

A graph can be recorded of it that is right for other tasks, states and parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from metaopt.base.network import Forward
from metaopt.meta.looks import Observe
from metaopt.meta.step_tensors import StepTensors
from metaopt.meta.unroll import InnerState, operation_by_operation
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.learned.affine import Affine, AffineModule, Terms, one_window
from metaopt.tasks.base import Observation, Problem, Tasks, cut
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.base import Report, Scaled, State, TeleportTrace


@dataclass(frozen=True)
class Traced:
    """The report of a teleport that was traced within the step.

    Attributes:
        trace: of that step.
    """

    together: ClassVar[int] = 1
    trace: TeleportTrace

    @property
    def passed(self) -> Forward | None:
        """None: the pass was made use of within the step."""
        return None

    def moved(self, rule: Scaled, state: State) -> State:
        """Not to be asked for."""
        raise AssertionError("the states have moved within the step")

    @classmethod
    def traced(
        cls, reports: Sequence[Traced], problem: Problem, after: Sequence[Observation]
    ) -> TeleportTrace:
        """The traces, joined."""
        return TeleportTrace.joined([report.trace for report in reports])


class PlainStep(nn.Module):
    """The step as a function of tensors, and of the parameters of the meta-optimizer."""

    def __init__(
        self, optimizer: MetaOptimizer, observe: Observe, tasks: TaskBatch, layout: StepTensors
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.observe = observe
        self.tasks = tasks
        self.layout = layout
        self.maps = [m for m in optimizer.modules() if isinstance(m, AffineModule)]

    def data(self, tasks: TaskBatch) -> dict[str, Tensor]:
        """What the step reads of the tasks."""
        return tasks.data(inverse=self.optimizer.reads_data)

    def forward(
        self, between: Sequence[Tensor], data: Mapping[str, Tensor]
    ) -> tuple[StepTensors, list[Tensor], list[tuple[Affine, ...]]]:
        """The layout after the step, its tensors, L(w) and those of the trace; the maps used."""
        # Nothing may be left of the tasks that are recorded.
        tasks = self.tasks.with_data(data, cut(tuple(between[: self.layout.layers])))
        weights, observation, states = self.layout.objects(between, tasks)
        state = InnerState(0, weights, tasks.X.new_zeros(()), observation, states)
        with one_window(Terms):
            now = operation_by_operation(tasks, tasks, self.optimizer, state, self.observe)
            maps = [module.maps() for module in self.maps]
        taken, report = now.taken, now.taken.report
        layout = StepTensors.of(now.observation, taken.state)
        tensors = layout.tensors(taken.weights, now.observation, taken.state)
        with torch.no_grad():
            trace = () if report is None else _parts(type(report), report, tasks, now.observation)
        return layout, [*tensors, now.loss, *trace], maps


def _parts(
    kind: type[Report], report: Report, tasks: Tasks, after: Observation
) -> tuple[Tensor, ...]:
    trace = kind.traced([report], tasks, [after])
    return trace.norm, trace.drift, trace.refused, trace.log_ratio
