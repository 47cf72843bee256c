"""What the teleports of an unroll did, step by step: their norms, drift, refusals, loss ratios."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.loss_statistics import SMALL_LOSS
from metaopt.tasks.base import Observation, Tasks
from metaopt.tasks.regression import TaskBatch, regression_loss
from metaopt.teleport.engine import TeleportReport
from metaopt.teleport.guard import drift
from metaopt.teleport.unit_engine import UnitReport

TRACED_TOGETHER = 10
"""Steps whose reports are kept, with their outputs and generators, until they become a trace."""


@dataclass(frozen=True)
class TeleportTrace:
    """Teleports of an unroll, each array [steps, B], without a graph.

    Attributes:
        norm: of the generators.
        drift: relative movement of the outputs.
        refused: 1 where the guard refused.
        log_ratio: log L(g.w) / L(w), summed over the teleports of a step; 0 where refused.
    """

    norm: Tensor
    drift: Tensor
    refused: Tensor
    log_ratio: Tensor

    def summary(self) -> dict[str, Tensor]:
        """Four scalars: means over steps and tasks, the largest drift, the signed log total."""
        dtype = self.norm.dtype
        return {
            "norm_mean": self.norm.mean(),
            "refused_share": self.refused.to(dtype).mean(),
            "drift_max": self.drift.max(),
            "drift_log_total_mean": self.log_ratio.double().sum(0).mean().to(dtype),
        }


def _trace(reports: list[TeleportReport], tasks: Tasks, losses: list[Tensor]) -> TeleportTrace:
    """The trace of the last steps, from their reports and all losses so far."""
    assert isinstance(tasks, TaskBatch)
    with torch.no_grad():
        report = TeleportReport.stack(reports)
        losses_after = torch.stack(losses[-len(reports) :])
        losses_before = regression_loss(report.outputs_before, tasks.Y)
        log_ratio = _log_ratio(losses_before, losses_after) + report.earlier_log_ratio
    return TeleportTrace(
        norm=report.norm,
        drift=report.drift,
        refused=report.refused,
        log_ratio=torch.where(report.refused, 0.0, log_ratio),
    )


def _trace_of_units(report: UnitReport, tasks: Tasks, observation: Observation) -> TeleportTrace:
    """The trace of one step that scaled units, which is exact up to rounding: one more loss.

    Its drift is that of the outputs where they are known, else the change of the loss on the data
    at hand, relative to it.

    Args:
        report: of the scaling.
        tasks: with the data of ``observation``.
        observation: after it.
    """
    assert observation.loss is not None
    with torch.no_grad():
        before, after = tasks.seen_loss(report.before), observation.loss
        if isinstance(tasks, TaskBatch):
            outputs = (tasks.outputs(report.before), tasks.outputs(observation.weights))
            moved = drift(*outputs, tasks.target_norm)
        else:
            moved = (after - before).abs() / before.clamp(min=SMALL_LOSS)
        return TeleportTrace(
            norm=report.norm[None],
            drift=moved[None],
            refused=torch.zeros_like(moved, dtype=torch.bool)[None],
            log_ratio=_log_ratio(before, after)[None],
        )


def _log_ratio(before: Tensor, after: Tensor) -> Tensor:
    """log (after / before), of losses that may vanish."""
    tiny = torch.finfo(after.dtype).tiny
    return after.clamp(min=tiny).log() - before.clamp(min=tiny).log()


def _joined(traces: list[TeleportTrace]) -> TeleportTrace:
    """Traces that follow each other, as one."""
    columns = zip(*((t.norm, t.drift, t.refused, t.log_ratio) for t in traces), strict=True)
    return TeleportTrace(*(torch.cat(column) for column in columns))
