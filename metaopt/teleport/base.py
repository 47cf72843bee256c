"""What every kind of teleport offers: an engine that moves weights, and a report of what it did.

    w -> g . w,   f(g . w) = f(w)

A new kind of teleport is one file with an engine and a report. No other file asks which kind it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from metaopt.base.network import Forward, Weights
from metaopt.symmetry.maps import GroupElement
from metaopt.symmetry.pairs import LinearPairs
from metaopt.tasks.base import Ground, Observation, Problem

Generators = tuple[Tensor, ...]
"""One generator [B, k_l, k_l] for each pair of adjacent layers, in order; or, for scaling of hidden
units, one diagonal [B, K] over all of them; or, for linear pairs, one [B, pairs, k, k] for each
width k.
"""

Elements = tuple[GroupElement | None, ...]
"""g and g^-1 of the linear pairs of each width, both [B, pairs, k, k]; None where pairs stay."""

State = dict[str, Tensor]
"""The state of one rule: its tensors by name."""


class Need(Enum):
    """What an engine has to know of the network that it moves."""

    NETWORK = "the network as a chain of layers, and its data"
    UNITS = "the hidden units"
    PAIRS = "the linear pairs"


@dataclass(frozen=True)
class TeleportTrace:
    """What the teleports of an unroll did: tensors [steps, B] without a graph.

    Attributes:
        norm: the Frobenius norm of the generators that were applied.
        drift: ||f(g.w) - f(w)||_F / (||f(w)||_F + ||Y||_F), the relative change of the outputs.
        refused: 1 if the guard refused the teleport, else 0.
        log_ratio: log L(g.w) / L(w), summed over the teleports of a step; 0 if refused.
    """

    norm: Tensor
    drift: Tensor
    refused: Tensor
    log_ratio: Tensor

    def summary(self) -> dict[str, Tensor]:
        """Four scalars: mean norm, share of refusals, largest drift, signed log total.

        The last is the sum of the log ratios over the steps, averaged over tasks.
        """
        dtype = self.norm.dtype
        return {
            "norm_mean": self.norm.mean(),
            "refused_share": self.refused.to(dtype).mean(),
            "drift_max": self.drift.max(),
            "drift_log_total_mean": self.log_ratio.double().sum(0).mean().to(dtype),
        }

    @staticmethod
    def joined(traces: Sequence[TeleportTrace]) -> TeleportTrace:
        """One trace made of traces that follow each other in time."""
        return _cat(traces, dim=0)

    @staticmethod
    def side_by_side(traces: Sequence[TeleportTrace]) -> TeleportTrace:
        """One trace made of traces of other tasks, in order."""
        return _cat(traces, dim=1)


def _cat(traces: Sequence[TeleportTrace], dim: int) -> TeleportTrace:
    columns = zip(*((t.norm, t.drift, t.refused, t.log_ratio) for t in traces), strict=True)
    return TeleportTrace(*(torch.cat(column, dim=dim) for column in columns))


def log_ratio(before: Tensor, after: Tensor) -> Tensor:
    """log (after / before) of losses of any shape; finite for losses that are 0."""
    tiny = torch.finfo(after.dtype).tiny
    return after.clamp(min=tiny).log() - before.clamp(min=tiny).log()


class MovesPairs(Protocol):
    """How a teleport of linear pairs moves what rules keep."""

    @property
    def pairs(self) -> LinearPairs:
        """The pairs."""

    @property
    def elements(self) -> Elements:
        """g and g^-1 of the pairs of each width."""

    @property
    def frames(self) -> tuple[GroupElement, ...]:
        """The frames that pairs are in after it, for each width."""

    def squares_of_gradients(self, tensors: int) -> Tensor:
        """What elements that are rotations times c multiply squares of gradients by, [B, 1, L]."""

    def products(self, width: int, products: Tensor) -> Tensor:
        """Sums of outer products of rows of gradients, [B, 2, pairs, k, k], after it."""

    def rows_of_gradients(self, rows: Tensor, weights: Weights) -> Tensor:
        """What is linear in gradients, [B, any, P], after it."""

    def rows_of_weights(self, rows: Tensor, weights: Weights) -> Tensor:
        """What is linear in weights, [B, any, P], after it."""


class Scaled(Protocol):
    """A rule whose state can follow a teleport of the weights."""

    def scaled(self, state: State, t: Tensor, log_factors: Weights) -> State:
        """The rule's state after the weights were multiplied by exp(l).

        Args:
            state: the state before.
            t: the logarithms of the factors of the hidden units, [B, K].
            log_factors: l, one tensor for each matrix of weights and of its shape.
        """

    def turned(self, state: State, move: MovesPairs, weights: Weights) -> State:
        """The rule's state after linear pairs have moved.

        Args:
            state: the state before.
            move: how weights, gradients, and products of these, have moved.
            weights: fix the shapes.
        """


class Report(Protocol):
    """What one teleport did.

    Attributes:
        together: how many reports the caller collects before it makes a trace of them.
    """

    together: ClassVar[int]

    @property
    def passed(self) -> Forward | None:
        """The forward pass at the new weights, without a graph; None if the engine made none."""

    def moved(self, rule: Scaled, state: State) -> State:
        """The state of a rule after this teleport."""

    @classmethod
    def traced(
        cls, reports: Sequence[Self], problem: Problem, after: Sequence[Observation]
    ) -> TeleportTrace:
        """The trace of consecutive steps.

        Args:
            reports: one for each step, in order.
            problem: the problem of the step after the last of them.
            after: the observation after each of the teleports, with its loss.
        """


class Engine(Protocol):
    """Carries out teleports: applies the group elements of generators to the weights.

    Attributes:
        needs: what the engine has to know of the network.
    """

    needs: ClassVar[Need]

    @property
    def reads_data(self) -> bool:
        """Whether the action reads the step's data, and so keeps the loss on those data only."""

    def check(self, ground: Ground, weights: Weights) -> None:
        """Raise ``InexactActionError`` if the engine cannot work here; called once a trajectory."""

    def teleport(
        self, weights: Weights, generators: Generators, ground: Ground
    ) -> tuple[Weights, Report]:
        """w -> g.w, with a report of what was done.

        Args:
            weights: w, each [B, out, in].
            generators: generators of any norm; the engine limits them.
            ground: what is known of the network.
        """
