"""One step of a meta-optimizer on the parameters of a model, plain or differentiable.

    w' = g . (w + lr (f + (learned_decay - 1) d - weight_decay w)),   g = exp(r T)

The rules propose the update f, which includes their learned decay d, and the generators T; r is the
smallest lr of all groups. lr = 1, learned_decay = 1 and weight_decay = 0 give the step that the
rules were meta-trained with; lr = 0 leaves everything where it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.base.shipped import DEFAULT
from metaopt.optim.chain import Chain, ModelData
from metaopt.optim.rates import Rates
from metaopt.optim.states import StateLayout, as_matrix
from metaopt.optim.told import Told, reads
from metaopt.rules.base import Proposal, State
from metaopt.rules.composed import MetaOptimizer, States
from metaopt.symmetry.actions import InexactActionError
from metaopt.symmetry.pairs import LinearPairs
from metaopt.symmetry.units import HiddenUnits
from metaopt.tasks.base import Observation
from metaopt.teleport.base import Engine, Need

NOT_SAID = (
    "they go through the data, and change what the model computes on any other: say "
    "full_batch=True where each gradient is that of all the data there is"
)
"""Why teleports through the data are off until the user says so."""


@dataclass(frozen=True)
class Advance:
    """One step that has been computed, but not yet written to the model.

    Attributes:
        weights: the new weights, shaped like the parameters; those without a gradient are the old
            ones.
        before: the states of all rules before the step.
        after: their states after the step, with the same keys or fewer.
    """

    weights: list[Tensor]
    before: States
    after: States

    def where(self, condition: Tensor, weights: Sequence[Tensor]) -> Advance:
        """This step if the condition holds, otherwise no step at all.

        It takes the tensors out of this object one by one, so that no second copy of the whole
        state is in memory.

        Args:
            condition: a boolean on the device.
            weights: the old weights.
        """
        return Advance(
            [torch.where(condition, self.weights.pop(0), old) for old in weights],
            self.before,
            {
                rule: {
                    key: torch.where(condition, own.pop(key), self.before[rule][key])
                    for key in list(own)
                }
                for rule, own in self.after.items()
            },
        )


@dataclass(frozen=True)
class ModelGround:
    """What is known of a user's model, as the ``Ground`` that engines move weights on.

    Attributes:
        network: the model as a chain, with the data behind the gradient, or None.
        units: its hidden units, or None.
        pairs: its linear pairs, or None.
    """

    network: ModelData | None
    units: HiddenUnits | None
    pairs: LinearPairs | None


class Stepper:
    """One inner step on the parameters of a model.

    Args:
        optimizer: the meta-optimizer.
        found: the model as a chain, or the reason why it is not a chain.
        movable: its hidden units or its linear pairs, as the engine needs them, or the reason why
            there are none.
        parameters: the parameters to optimise, in the order in which the rules see them.
        told: what the rules could rely on in meta-training, such as the loss.
        full_batch: whether each gradient is that of all the data.
        keep_graph: whether the inputs of layers keep their graph, for ``higher``. Then the rules
            are still being meta-trained, and none is refused for what it could rely on before.
        known: why teleports are off, if that is known already; then there is no warning.

    Attributes:
        chain: the model as a chain, whose layers' inputs are recorded; or None.
        teleports_off: why teleports are off, or None if they are on.
        is_off_from_the_start: whether teleports are off since the model and its parameters never
            allowed any.

    Raises:
        ValueError: if the rule cannot work on this model.
    """

    def __init__(
        self,
        optimizer: MetaOptimizer,
        found: Chain | str,
        movable: HiddenUnits | LinearPairs | str,
        parameters: Sequence[Tensor],
        told: Told,
        full_batch: bool,
        keep_graph: bool,
        known: str | None = None,
    ) -> None:
        if optimizer.gradients_per_step != 1:
            raise ValueError(
                f"this rule takes {optimizer.gradients_per_step:g} gradients a step, at weights of "
                f"its own choice (teleporter.order: around), and a torch.optim.Optimizer is given "
                f"one: use a rule with teleporter.order: after, or {DEFAULT}"
            )
        self.optimizer = optimizer
        self.layout = StateLayout(optimizer, [parameter.shape for parameter in parameters])
        self.chain = found if isinstance(found, Chain) else None
        self.teleports_off: str | None = None
        self.is_off_from_the_start = False
        self._known = known
        self._told = told
        self._keep_graph = keep_graph
        self._data: ModelData | None = None
        self.units = movable if isinstance(movable, HiddenUnits) else None
        self.pairs = movable if isinstance(movable, LinearPairs) else None
        moves = optimizer.engine is not None and optimizer.engine.needs is not Need.NETWORK
        if isinstance(movable, str) and moves:
            self._warn_and_turn_off(movable)
        if isinstance(found, str):
            self.without_inputs(found)
        elif not told.inputs_shown or not reads("inputs", optimizer.rules.values()):
            self.chain = self.chain if self._through_data is not None else None
        if self.chain is not None:
            self.chain.watch(keep_graph)
        engine = self._through_data
        if engine is not None and engine.reads_data and not full_batch:
            self._warn_and_turn_off(NOT_SAID)
        self.is_off_from_the_start = self.teleports_off is not None

    @property
    def _through_data(self) -> Engine | None:
        """The engine if it works on the chain, otherwise None."""
        engine = self.optimizer.engine
        return None if engine is None or engine.needs is not Need.NETWORK else engine

    def initial_states(
        self, weights: Sequence[Tensor], teleports_off: str | None = None
    ) -> list[State]:
        """The state of each parameter before the first step.

        Args:
            weights: the parameters in the rule's dtype.
            teleports_off: why teleports will be off, or None.

        Raises:
            ValueError: where the rule cannot work without them.
        """
        matrices = tuple(as_matrix(W) for W in weights)
        observation = Observation(matrices, matrices, (), None, self.units, self.pairs)
        optimizer = self.optimizer
        if teleports_off is not None and optimizer.engine is not None:
            optimizer = self._without_teleports(teleports_off)
        return self.layout.apart(optimizer.initial_rule_states(observation))

    def without_inputs(self, why: str) -> None:
        """Treat the inputs of layers as unknown from now on, without teleports through the data.

        Raises:
            ValueError: where the rule cannot work without them.
        """
        self.chain = None
        if any(rule.needs_inputs for rule in self.optimizer.rules.values()):
            raise ValueError(
                f"this rule reads products of layers' inputs, but {why}: take a rule that does "
                f"without ({DEFAULT})"
            )
        if self._through_data is not None:
            self._warn_and_turn_off(why)

    def turn_teleports_off(self, why: str) -> None:
        """Take updates only from now on, and drop a rule that only proposes generators.

        Raises:
            ValueError: where the rule cannot work without teleports.
        """
        if self.optimizer.engine is not None:
            self.optimizer = self._without_teleports(why)
        elif why == self.teleports_off or not self.is_off_from_the_start:
            return
        self.teleports_off = why
        self.is_off_from_the_start = False

    def _without_teleports(self, why: str) -> MetaOptimizer:
        rules = self.optimizer.rules
        if "update" in rules:
            rules = {"update": rules["update"]}
        elif self.chain is None:
            raise ValueError(
                f"this rule proposes steps from generator features, but {why}; for other models "
                f"take a rule with updates of its own ({DEFAULT})"
            )
        return MetaOptimizer(rules, None)

    def _warn_and_turn_off(self, why: str) -> None:
        self.turn_teleports_off(why)
        if why != self._known:
            warnings.warn(f"updates only, no teleports: {why}", stacklevel=5)

    def advance(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        loss: Tensor | None,
        rates: Sequence[Rates],
        states: Sequence[State],
        differentiate_features: bool,
        left: Tensor | None = None,
    ) -> Advance:
        """Compute a step, without writing it to the model.

        Args:
            weights: the parameters in the rule's dtype, in the order of the constructor.
            grads: the gradient of each parameter, of its shape, or None.
            loss: the loss, a scalar; or None if it is not known.
            rates: the learning rate and decays of each parameter.
            states: the state of each parameter.
            differentiate_features: whether meta-gradients flow through the gradients (second
                order).
            left: the share of the steps that is left, [1], or None if it is not known.
        """
        active = [G is not None for G in grads]
        if self._through_data is not None and not all(active):
            self._warn_and_turn_off("some of its weights have no gradient")
        if self.pairs is not None and not self.pairs.within(active):
            self._warn_and_turn_off("some weights of its linear pairs have no gradient")
        matrices = tuple(as_matrix(W) for W in weights)
        observation = Observation(
            weights=matrices,
            # A parameter without a gradient is shown with gradient 0, and does not move.
            grads=tuple(
                torch.zeros_like(W) if G is None else as_matrix(G)
                for W, G in zip(matrices, grads, strict=True)
            ),
            inputs=() if self.chain is None else self._layer_inputs(self.chain),
            loss=None if loss is None else loss.reshape(1),
            units=self.units,
            pairs=self.pairs,
            left=left,
        )
        # Without a graph there is none to leave out.
        if not differentiate_features and torch.is_grad_enabled():
            observation = observation.detach()
        if not self._keep_graph:
            self._told.check(self.optimizer.rules.values(), observation, [r.lr for r in rates])
        old = self.layout.together(states, self.optimizer.rules)
        taken = self.optimizer.step(
            matrices,
            observation,
            old,
            ModelGround(self._data, self.units, self.pairs),
            partial(self._adjusted, rates, active),
        )
        stepped = [
            W_new.reshape(W.shape) if G is not None else W
            for W_new, W, G in zip(taken.weights, weights, grads, strict=True)
        ]
        return Advance(stepped, old, self.layout.moved(old, taken.state, active))

    def _adjusted(
        self, rates: Sequence[Rates], active: Sequence[bool], weights: Weights, proposal: Proposal
    ) -> Proposal:
        """The proposal with the rates of the groups, for what has a gradient."""
        updates = proposal.updates
        if updates is not None:
            decays = proposal.decays or [None] * len(weights)
            updates = tuple(
                rate.step(W, f, decay)
                for f, W, decay, rate in zip(updates, weights, decays, rates, strict=True)
            )
        averaging = proposal.averaging
        if averaging is not None:
            averaging = averaging.slower([rate.lr for rate in rates])
        smallest = min(rate.lr for rate in rates)
        # With lr = 0 nothing may move, but rounding in the action of exp(0) would move weights.
        if smallest == 0:
            return Proposal(updates, averaging=averaging)
        if proposal.frames is not None or proposal.elements is not None:
            # Frames are no steps: a smaller lr makes shorter steps in the same frame.
            return replace(proposal, updates=updates, averaging=averaging, decays=None)
        if proposal.generators is None:
            return Proposal(updates, averaging=averaging)
        generators = tuple(smallest * T for T in proposal.generators)
        if self.units is not None and not all(active):
            # A unit is not scaled if a parameter that makes or reads it has no gradient.
            generators = tuple(t * self.units.within(active).to(t) for t in generators)
        return Proposal(updates, generators, averaging=averaging)

    def _layer_inputs(self, chain: Chain) -> tuple[Tensor, ...]:
        """The inputs of layers behind the gradient; new data are checked to allow teleports."""
        engine = self._through_data
        if engine is None:
            return chain.layer_inputs() if chain.is_in_order() else ()
        inputs = chain.layer_inputs()
        if not inputs:
            raise RuntimeError(
                "teleporting needs to see the forward and backward pass that a gradient comes "
                "from: call the model itself, not within torch.func or torch.jit, and make the "
                "optimizer before a compiled model is called"
            )
        X = inputs[0].detach()
        before = self._data
        if before is not None and before.has_same_rows(X):
            return inputs
        self._data = ModelData(X, chain.s)
        if before is not None and engine.reads_data:
            # The action is exact on one mini-batch, and changes the outputs on all others.
            self._warn_and_turn_off("the data changes from step to step")
            return inputs
        try:
            engine.check(
                ModelGround(self._data, self.units, self.pairs),
                tuple(as_matrix(layer.weight) for layer in chain.layers),
            )
        except InexactActionError as error:
            self._warn_and_turn_off(str(error))
        return inputs
