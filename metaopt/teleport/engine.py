"""The teleport engine: w -> g.w on every adjacent pair of layers in turn.

For l = 1 .. L - 1:   T_l -> limit(algebra(T_l)) -> (g_l, g_l^-1) -> g_l . (W_l, W_{l+1})

Each action leaves the input of the next pair as the earlier ones made it: after the pair l the
input of pair l + 1 is A_l = s(W_l' A_{l-1}), which the action through the data then has to invert
afresh.
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
    """A^+ = (A^T A)^-1 A^T where N <= n, else A^T (A A^T)^-1: for A [B, n, N] of full rank.

    In float64, through the normal equations: in the inner loop a decomposition would wait for the
    device, and stop at the first number that is not finite. Such a number, or a rank that is not
    full, gives a drift that the guard sees instead.
    """
    is_tall = A.shape[-1] <= A.shape[-2]
    tall = A.double() if is_tall else A.double().mT
    inverse = torch.linalg.solve_ex(tall.mT @ tall, tall.mT).result
    return (inverse if is_tall else inverse.mT).to(A.dtype)


@dataclass(frozen=True)
class TeleportReport:
    """What one teleport, or several stacked in front of [B], did; without a graph.

    Attributes:
        generators: those that were applied where nothing was refused, each [B, k_l, k_l].
        scale: factor on them, [B].
        drift: of what the guard let through, [B].
        refused: bool [B].
        outputs_before: f(w) before the teleport, [B, m, N].
        earlier_log_ratio: log L(g.w) / L(w) of another teleport earlier in the step, [B]; 0
            without one.
        passed: the forward pass at the weights that it led to, where it was made.
    """

    together: ClassVar[int] = 10

    generators: Generators
    scale: Tensor
    drift: Tensor
    refused: Tensor
    outputs_before: Tensor
    earlier_log_ratio: Tensor
    passed: Forward | None = None

    @classmethod
    def stack(cls, reports: Sequence[TeleportReport]) -> TeleportReport:
        """Several reports as one, their arrays [len(reports), B, ..]."""
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
        """The report of a step without teleport, at the weights that it leads to.

        Where the outputs overflow it says refused, as a guard would of any teleport there.
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

    def moved(self, rule: Scaled, state: State) -> State:
        """As it is: what rules know of a chain of layers, they see anew in every step."""
        return state

    @classmethod
    def traced(
        cls, reports: Sequence[TeleportReport], problem: Problem, after: Sequence[Observation]
    ) -> TeleportTrace:
        """The trace of the last steps, from their reports and the losses after them."""
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
        """Frobenius norm of what was applied, over all pairs together, [B]; 0 where refused."""
        squares = [T.square().sum(dim=(-2, -1)) for T in self.generators]
        norm = self.scale * torch.stack(squares).sum(0).sqrt()
        return torch.where(self.refused, 0.0, norm)


def known_network(problem: Problem) -> KnownRegression:
    """The network of a problem, for what needs it and its targets beside gradients.

    Raises:
        InexactActionError: where the problem is of a family that keeps both to itself.
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
    """Moves weights along the level set of the loss.

    Args:
        action: how the group acts on a pair of layers.
        to_element: the map from generator to element.
        limit: the norm limit of generators.
        guard: what happens to a teleport that drifts.
        require_exact: raise where the shapes say that the action cannot be exact, instead of
            leaving it to the guard.
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
        """Whether the action is exact on the data at hand alone."""
        return self.action.needs_data

    def check(self, ground: Ground, weights: Weights) -> None:
        """Raise ``InexactActionError`` where the action cannot be exact, if that is asked for.

        Reads shapes, and for the action through the data the rank of X in float64: once for a
        trajectory, not in the inner loop.
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
        """g.w without guard: every adjacent pair in turn.

        Args:
            weights: L matrices [B, out, in].
            generators: L - 1 generators in the algebra, within the norm limit.
            data: what the action is carried through.
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
        """g^-1.w without guard: the inverse elements, the last pair first.

        In this order it undoes ``move`` whatever the depth, where the activations have full column
        rank. Arguments as for ``move``.
        """
        moved = list(weights)
        needs_data = self.action.needs_data
        # A pair leaves the inputs of the pairs before it alone.
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
        """The generators in the algebra, within the norm limit."""
        return tuple(self.limit(self.action.algebra(T)) for T in generators)

    def teleport(
        self, weights: Weights, generators: Generators, ground: Ground
    ) -> tuple[Weights, TeleportReport]:
        """w -> g.w under guard, with a report of norm, drift and refusals.

        Args:
            weights: L matrices [B, out, in].
            generators: L - 1 matrices [B, k_l, k_l] of any norm.
            ground: with a known network.
        """
        data = _network(ground)
        return self._under_guard(weights, self.limited(generators), data, self.move)

    def teleport_back(
        self, weights: Weights, generators: Generators, ground: Ground
    ) -> tuple[Weights, TeleportReport]:
        """w -> g^-1.w under guard; generators as they were applied, limit and scale included."""
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
            # What guards measure last is where they leave the weights, unless they refuse.
            before.where(guarded.refused, after),
        )


def of_pairs(engine: Engine | None) -> TeleportEngine | None:
    """The engine itself where it moves pairs of layers, for what has to know its elements."""
    return engine if isinstance(engine, TeleportEngine) else None


def _network(ground: Ground) -> KnownNetwork:
    if ground.network is None:
        raise InexactActionError(_UNKNOWN)
    return ground.network
