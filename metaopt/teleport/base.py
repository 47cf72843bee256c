"""What every kind of teleport offers: an engine that checks and moves, a report of what it did.

    w -> g . w,   f(g . w) = f(w)

A new kind is one file with an engine and a report; nothing else asks which kind it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from metaopt.base.network import Forward, Weights
from metaopt.tasks.base import Ground, Observation, Problem

Generators = tuple[Tensor, ...]
"""One generator for each adjacent pair of layers, each [B, k_l, k_l]; or one diagonal over all
hidden units, [B, K]."""

State = dict[str, Tensor]
"""The state of one rule: its tensors by name."""


class Need(Enum):
    """What an engine has to know of what it moves."""

    NETWORK = "the network as a chain of layers, and its data"
    UNITS = "the hidden units"


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

    @staticmethod
    def joined(traces: Sequence[TeleportTrace]) -> TeleportTrace:
        """Traces that follow each other, as one."""
        columns = zip(*((t.norm, t.drift, t.refused, t.log_ratio) for t in traces), strict=True)
        return TeleportTrace(*(torch.cat(column) for column in columns))


def log_ratio(before: Tensor, after: Tensor) -> Tensor:
    """log (after / before), of losses that may vanish."""
    tiny = torch.finfo(after.dtype).tiny
    return after.clamp(min=tiny).log() - before.clamp(min=tiny).log()


class Scaled(Protocol):
    """A rule, as far as a teleport is concerned."""

    def scaled(self, state: State, t: Tensor, log_factors: Weights) -> State:
        """Its state after the weights were multiplied by exp(l)."""


class Report(Protocol):
    """What one teleport did.

    Attributes:
        together: how many of them are made into a trace at once.
    """

    together: ClassVar[int]

    @property
    def passed(self) -> Forward | None:
        """The forward pass at the weights that it led to, without a graph, where it was made."""

    def moved(self, rule: Scaled, state: State) -> State:
        """What becomes of a rule's state when the weights have moved so."""

    @classmethod
    def traced(
        cls, reports: Sequence[Self], problem: Problem, after: Sequence[Observation]
    ) -> TeleportTrace:
        """The trace of the last steps.

        Args:
            reports: of these steps, in order.
            problem: of the step after the last of them.
            after: what was observed after each of them, with its loss.
        """


class Engine(Protocol):
    """What carries generators out.

    Attributes:
        needs: what it has to know.
    """

    needs: ClassVar[Need]

    @property
    def reads_data(self) -> bool:
        """Whether it goes through the data at hand, and is exact on that alone."""

    def check(self, ground: Ground, weights: Weights) -> None:
        """Raise ``InexactActionError`` where it cannot work; once for a trajectory."""

    def teleport(
        self, weights: Weights, generators: Generators, ground: Ground
    ) -> tuple[Weights, Report]:
        """w -> g.w, with a report.

        Args:
            weights: w, each [B, out, in].
            generators: of any norm.
            ground: what is known of the network.
        """
