"""The teleport engine: w -> g.w on every pair of adjacent layers in turn.

For l = 1 .. L - 1:   T_l -> limit(algebra(T_l)) -> (g_l, g_l^-1) -> g_l . (W_l, W_{l+1})

The action on pair l changes the input of pair l + 1 to A_l = s(W_l' A_{l-1}). The action through
the data therefore computes the pseudo-inverse of A_l after it has moved pair l.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaopt.base.network import Forward, Weights, forward
from metaopt.symmetry.actions import Action, InexactActionError, LayerPair
from metaopt.symmetry.limits import NormLimit
from metaopt.symmetry.maps import ElementMap, GroupElement
from metaopt.tasks.base import (
    Ground,
    KnownNetwork,
    KnownRegression,
    Observation,
    Problem,
    observed_loss,
)
from metaopt.tasks.regression import regression_loss
from metaopt.teleport.base import Engine, Generators, Need, Scaled, State, TeleportTrace, log_ratio
from metaopt.teleport.guard import Guard, drift


def full_rank_inverse(A: Tensor) -> Tensor:
    """A^+ = (A^T A)^-1 A^T if N <= n, else A^T (A A^T)^-1, for A [B, n, N] of full rank.

    It solves the normal equations in float64. A decomposition would make the inner loop wait for
    the device, and would raise an error at a number that is not finite. With such a number, or
    without full rank, the result is wrong; the drift then shows it to the guard.
    """
    is_tall = A.shape[-1] <= A.shape[-2]
    tall = A.double() if is_tall else A.double().mT
    inverse = torch.linalg.solve_ex(tall.mT @ tall, tall.mT).result
    return (inverse if is_tall else inverse.mT).to(A.dtype)


@dataclass(frozen=True)
class TeleportReport:
    """What one teleport did, without a graph; several can be stacked in front of the axis B.

    Attributes:
        generators: the generators before ``scale``, each [B, k_l, k_l]; those of tasks where the
            teleport was refused were not applied.
        scale: the factor that the guard put on them, [B].
        drift: the drift of what was applied, [B]; 0 if refused.
        refused: whether the guard refused the teleport, bool [B].
        outputs_before: f(w) before the teleport, [B, m, N].
        earlier_log_ratio: log L(g.w) / L(w) of another teleport earlier in the step, [B]; 0
            if there was none.
        passes: the forward passes before it and at g.w, or None if they do not lead to the weights.
    """

    together: ClassVar[int] = 10

    generators: Generators
    scale: Tensor
    drift: Tensor
    refused: Tensor
    outputs_before: Tensor
    earlier_log_ratio: Tensor
    passes: tuple[Forward, Forward] | None = None

    @classmethod
    def stack(cls, reports: Sequence[TeleportReport]) -> TeleportReport:
        """One report with the arrays of several, each [len(reports), B, ..]."""
        pairs = zip(*(report.generators for report in reports), strict=True)
        return cls(
            tuple(torch.stack(of_pair) for of_pair in pairs),
            torch.stack([report.scale for report in reports]),
            torch.stack([report.drift for report in reports]),
            torch.stack([report.refused for report in reports]),
            torch.stack([report.outputs_before for report in reports]),
            torch.stack([report.earlier_log_ratio for report in reports]),
        )

    @classmethod
    def none(cls, weights: Weights, data: KnownNetwork) -> TeleportReport:
        """The report of a step without a teleport.

        Tasks whose outputs are not finite count as refused, as they would under any guard.

        Args:
            weights: the weights after the step, each [B, out, in].
            data: the network and its data.
        """
        outputs = forward(weights, data.X, data.s).outputs
        zeros = outputs.new_zeros(len(outputs))
        finite = torch.isfinite(torch.linalg.matrix_norm(outputs))
        return cls(
            tuple(W.new_zeros(W.shape[0], W.shape[1], W.shape[1]) for W in weights[:-1]),
            torch.ones_like(zeros),
            zeros,
            ~finite,
            outputs,
            zeros,
        )

    @property
    def passed(self) -> Forward | None:
        """The forward pass at the weights that it led to: that before it where it was refused."""
        if self.passes is None:
            return None
        before, after = self.passes
        return before.where(self.refused, after)

    def moved(self, rule: Scaled, state: State) -> State:
        """The state, unchanged: rules read a chain of layers anew in every step."""
        return state

    @classmethod
    def traced(
        cls, reports: Sequence[TeleportReport], problem: Problem, after: Sequence[Observation]
    ) -> TeleportTrace:
        """The trace of consecutive steps, from their reports and the losses after them."""
        network = known_network(problem)
        with torch.no_grad():
            report = cls.stack(reports)
            before = regression_loss(report.outputs_before, network.Y)
            losses = torch.stack([observed_loss(observation) for observation in after])
            ratio = log_ratio(before, losses) + report.earlier_log_ratio
        return TeleportTrace(
            norm=report.norm,
            drift=report.drift,
            refused=report.refused,
            log_ratio=torch.where(report.refused, 0.0, ratio),
        )

    @property
    def norm(self) -> Tensor:
        """sqrt(sum_l ||T_l||_F^2) of what was applied, [B]; 0 if refused."""
        squares = [T.square().sum(dim=(-2, -1)) for T in self.generators]
        norm = self.scale * torch.stack(squares).sum(0).sqrt()
        return torch.where(self.refused, 0.0, norm)


def known_network(problem: Problem) -> KnownRegression:
    """The network of a problem, with its data and targets.

    Raises:
        InexactActionError: if the problem's family does not expose its network.
    """
    if problem.network is None:
        raise InexactActionError(_UNKNOWN)
    return problem.network


_UNKNOWN = (
    "teleports through the data and references need to know the network of the tasks, as that of "
    "leaky_relu_regression; of a family of your own only the loss is known, and hidden units may "
    "be scaled (rules.teleport of kind unit_lstm)"
)


class TeleportEngine:
    """w -> g.w: moves the weights along the level set of the loss.

    Args:
        action: how the group acts on a pair of layers.
        to_element: the map from a generator to a group element.
        limit: the limit on the norm of generators.
        guard: what happens to a teleport that changes the outputs.
        require_exact: if true, ``check`` raises an error where the shapes rule out an exact action.
            If false, the guard deals with inexact teleports.
    """

    needs: ClassVar[Need] = Need.NETWORK

    def __init__(
        self,
        action: Action,
        to_element: ElementMap,
        limit: NormLimit,
        guard: Guard,
        require_exact: bool,
    ) -> None:
        self.action = action
        self.to_element = to_element
        self.limit = limit
        self.guard = guard
        self.require_exact = require_exact

    @property
    def reads_data(self) -> bool:
        """Whether the action reads the step's data, and so keeps the loss on those data only."""
        return self.action.needs_data

    def check(self, ground: Ground, weights: Weights) -> None:
        """Raise ``InexactActionError`` if the action cannot be exact and ``require_exact`` is set.

        Reads shapes and, for the action through the data, computes the rank of X in float64. It is
        meant to be called once a trajectory, not in the inner loop.
        """
        data = _network(ground)
        if not self.require_exact:
            return
        samples = data.X.shape[-1]
        for W in weights[:-1]:
            self.action.require_exact(data.s, samples, inputs=W.shape[-1])
        if self.action.needs_data and not data.s.is_identity:
            ranks = torch.linalg.matrix_rank(data.X.double())
            if bool((ranks < samples).any()):
                raise InexactActionError(
                    f"the action through the data needs inputs of full column rank {samples}, "
                    f"found rank {int(ranks.min())}"
                )

    def move(self, weights: Weights, generators: Generators, data: KnownNetwork) -> Weights:
        """g.w without a guard: acts on every pair of adjacent layers in turn.

        Args:
            weights: L matrices [B, out, in].
            generators: L - 1 generators in the Lie algebra, within the norm limit.
            data: the network and the data that the action may read.
        """
        moved = list(weights)
        needs_data = self.action.needs_data
        inputs = data.X
        inputs_pinv = data.X_pinv if needs_data else None
        for layer, T in enumerate(generators):
            pair = LayerPair(
                W_in=moved[layer],
                W_out=moved[layer + 1],
                s=data.s,
                inputs=inputs,
                inputs_pinv=inputs_pinv,
            )
            pair = self.action.act(self.to_element(T), pair)
            moved[layer], moved[layer + 1] = pair.W_in, pair.W_out
            if needs_data and layer + 1 < len(generators):
                inputs = data.s(torch.bmm(pair.W_in, inputs))
                inputs_pinv = full_rank_inverse(inputs)
        return tuple(moved)

    def move_back(self, weights: Weights, generators: Generators, data: KnownNetwork) -> Weights:
        """g^-1.w without a guard: applies the inverse elements, the last pair first.

        In this order it undoes ``move`` at any depth, provided that the layers' inputs have full
        column rank. Arguments as for ``move``.
        """
        moved = list(weights)
        needs_data = self.action.needs_data
        # Moving a pair does not change the inputs of the pairs before it.
        inputs = forward(weights, data.X, data.s).inputs if needs_data else ()
        for layer in reversed(range(len(generators))):
            pair = LayerPair(
                W_in=moved[layer],
                W_out=moved[layer + 1],
                s=data.s,
                inputs=inputs[layer] if needs_data else None,
                inputs_pinv=self._inverse_of_inputs(inputs, layer, data) if needs_data else None,
            )
            g, g_inv = self.to_element(generators[layer])
            pair = self.action.act(GroupElement(g_inv, g), pair)
            moved[layer], moved[layer + 1] = pair.W_in, pair.W_out
        return tuple(moved)

    @staticmethod
    def _inverse_of_inputs(inputs: Sequence[Tensor], layer: int, data: KnownNetwork) -> Tensor:
        return data.X_pinv if layer == 0 else full_rank_inverse(inputs[layer])

    def limited(self, generators: Generators) -> Generators:
        """The generators projected on the Lie algebra and brought within the norm limit."""
        return tuple(self.limit(self.action.algebra(T)) for T in generators)

    def teleport(
        self, weights: Weights, generators: Generators, ground: Ground
    ) -> tuple[Weights, TeleportReport]:
        """w -> g.w under the guard, with a report of norm, drift and refusals.

        Args:
            weights: L matrices [B, out, in].
            generators: L - 1 matrices [B, k_l, k_l] of any norm.
            ground: what is known of the network; it must know the network and its data.
        """
        data = _network(ground)
        return self._under_guard(weights, self.limited(generators), data, self.move)

    def teleport_back(
        self, weights: Weights, generators: Generators, ground: Ground
    ) -> tuple[Weights, TeleportReport]:
        """w -> g^-1.w under the guard.

        Args:
            weights: L matrices [B, out, in].
            generators: the generators as they were applied, after limit and scale.
            ground: what is known of the network; it must know the network and its data.
        """
        return self._under_guard(weights, generators, _network(ground), self.move_back)

    def _under_guard(
        self,
        weights: Weights,
        limited: Generators,
        data: KnownNetwork,
        move: Callable[[Weights, Generators, KnownNetwork], Weights],
    ) -> tuple[Weights, TeleportReport]:
        with torch.no_grad():
            before = forward(weights, data.X, data.s)
        after = before

        def drift_of(moved: Weights) -> Tensor:
            nonlocal after
            with torch.no_grad():
                after = forward(moved, data.X, data.s)
                return drift(before.outputs, after.outputs, data.target_norm)

        guarded = self.guard(
            weights, limited, lambda w, generators: move(w, generators, data), drift_of
        )
        constants = tuple(T.detach() for T in limited)
        return guarded.weights, TeleportReport(
            constants,
            guarded.scale,
            guarded.drift,
            guarded.refused,
            before.outputs,
            torch.zeros_like(guarded.drift),
            # The last weights that a guard measures are those it returns, unless it refuses.
            (before, after),
        )


def of_pairs(engine: Engine | None) -> TeleportEngine | None:
    """The engine if it moves pairs of layers, else None, for code that needs group elements."""
    return engine if isinstance(engine, TeleportEngine) else None


def _network(ground: Ground) -> KnownNetwork:
    if ground.network is None:
        raise InexactActionError(_UNKNOWN)
    return ground.network
