"""The learned optimizer as ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.base.shipped import DEFAULT
from metaopt.optim.finite import FiniteWatch, given, made
from metaopt.optim.half import matching, unrounded, write
from metaopt.optim.horizon import HorizonWatch, checked, heard
from metaopt.optim.inputs import loss_of, rates, require_gradients, require_no_capture
from metaopt.optim.learned import LearnedRule, load
from metaopt.optim.loading import Loaded, Owner
from metaopt.optim.loading import load as load_state
from metaopt.optim.members import Members, Parameters, trainable
from metaopt.optim.memory import (
    AVERAGED,
    NOTHING_YET,
    RULE,
    STEPS,
    TELEPORTS_OFF,
    identity,
    remember,
    remembered,
    state_dict_of,
)
from metaopt.optim.modes import TwoModes, require_train_mode
from metaopt.optim.replicas import Replicas
from metaopt.optim.stepper import NOT_SAID, Stepper
from metaopt.optim.told import Told
from metaopt.optim.with_higher import make_known
from metaopt.optim.within import chain_within, movable_within
from metaopt.rules.base import State
from metaopt.rules.composed import MetaOptimizer
from metaopt.tasks.base import share_left
from metaopt.teleport.optimizer_state import Kept


class LearnedOptimizer(TwoModes):
    """w <- g . (w + lr (f - weight_decay w)) on the parameters of a model, with a learned rule.

    f is the update that the rule proposes, g the teleport. The rule chooses the size of f, so lr is
    a multiplier: 1 gives the steps that were meta-trained, and torch's schedulers may change it.
    Generators are multiplied by the smallest lr of all groups. Without teleports the step is
    ``w <- (1 - lr weight_decay) w + lr f``, as in AdamW.

    **Under some rules weights decay even if weight_decay is 0**: layer-wise rules (such as that for
    digits) have a decay of their own, learned or not, a part of f. It acts on entries that have a
    gradient at this step. learned_decay is a factor on it, and 0 turns it off.

    The rule sees each parameter as a matrix [out, rest], and a vector as one column. Parameters
    without a gradient, and their state, stay as they are. Half-precision parameters are advanced in
    float32 and rounded (``half``). The rule computes in float32, or in float64 if a parameter is
    float64, also under autocast. ``GradScaler`` is used as with any optimizer.

    ``state`` holds, for each parameter, the state of the LSTM; for a coordinate-wise rule each
    tensor is [hidden, *shape]. State that belongs to all parameters together (flattened rules,
    teleporters) is kept with the first parameter.

    Args:
        model: the model whose trainable parameters are optimised. Parameters or groups, as other
            optimizers of torch take them, work too, without teleports.
        rule: a ``LearnedRule``, or anything that ``metaopt.load`` takes: a file, a run's folder,
            the name of a shipped rule such as ``digits_update_tele``, or a hub id. Without one it
            is the shipped rule for all models, ``general_update``.
        lr: factor on the updates of each group that has no lr of its own.
        weight_decay: decoupled weight decay of each group that has none of its own.
        params: parameters or groups, if not all trainable parameters of the model are optimised.
            Rules see them in the model's order, whatever the groups.
        learned_decay: factor on the weight decay that the rule has learned, of each group that has
            none of its own: 1 for the decay that was meta-trained, 0 for none.
        full_batch: say True if each gradient is that of all the data. Teleports through the data
            require it, since they change what the model computes on any other data.
        horizon: the steps that there will be, if known: rules that hear it end their steps there.

    Attributes:
        meta_optimizer: the rule's meta-optimizer, or a copy on the parameters' device in ``dtype``.

    Raises:
        CheckpointError: if the path holds no checkpoint.
        ShapeMismatchError: if a flattened rule was made for other shapes.
        ValueError: if the rule needs teleports and the model allows none; if the rule takes more
            than one gradient a step; if the parameters are not real floating-point numbers on one
            device; if this process has, or may have, only a part of the parameters (a list in one
            of several processes); or if an option is no finite number of at least 0.

    References:
        Loshchilov and Hutter, Decoupled weight decay regularization (2019).
    """

    _stepper: Stepper
    _watch: FiniteWatch

    def __init__(
        self,
        model: nn.Module | Parameters,
        rule: str | Path | LearnedRule = DEFAULT,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        params: Parameters | None = None,
        learned_decay: float = 1.0,
        full_batch: bool = False,
        horizon: int | None = None,
    ) -> None:
        make_known()
        self.model = model if isinstance(model, nn.Module) else None
        self.rule = rule if isinstance(rule, LearnedRule) else load(rule)
        self.full_batch, self.horizon = full_batch, heard(horizon, self.rule)
        options = {"lr": lr, "weight_decay": weight_decay, "learned_decay": learned_decay}
        super().__init__(trainable(model, params), options | NOTHING_YET)  # type: ignore[arg-type]
        self._prepare()

    @property
    def teleports_off(self) -> str | None:
        """Why this optimizer no longer teleports and only takes updates; None if it teleports."""
        return self._stepper.teleports_off

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Optimise further parameters as well, such as those that were frozen before."""
        super().add_param_group(param_group)
        try:
            rates(self.param_groups)
            # torch adds the first groups from within its own constructor.
            if hasattr(self, "_stepper"):
                self._follow()
        except Exception:
            self.param_groups.pop()
            raise

    def _follow(self) -> None:
        """Follow changes that users have made to the groups by hand."""
        if not self._members.are_still(self.param_groups):
            self._take_over()
        why = remembered(self.param_groups)[TELEPORTS_OFF]
        if why is not None:
            self._stepper.turn_teleports_off(why)

    def _take_over(self) -> None:
        """Prepare for changed parameters; those that stay keep their states."""
        gone, reshaped = Members(self.model, self.param_groups).since(self._members)
        first, shared = self.in_order()[0], self.shared_state()
        for p in reshaped:
            self.state[p] = {key: self.state[p][key] for key in shared if p is first}
        as_before = dict(vars(self))
        try:
            self._prepare()
        except Exception:
            vars(self).update(as_before)
            raise
        if first is not self.in_order()[0]:
            state, own = self.state[first], self.state[self.in_order()[0]]
            gone_on = {key: state.pop(key) for key in shared}
            own |= self._stepper.layout.of_the_same_shapes(gone_on, own)
        for p in gone:
            self.state.pop(p, None)

    def _prepare(self) -> None:
        """Make everything that depends on the rule, the model and the groups."""
        self._members = Members(self.model, self.param_groups)
        self._replicas = Replicas(self.model)
        self._horizon_watch = getattr(self, "_horizon_watch", HorizonWatch(self.rule))
        self.meta_optimizer = matching(self.rule.optimizer, self._members.device, self.dtype)
        before = getattr(self, "_stepper", None)
        known = remembered(self.param_groups)[TELEPORTS_OFF]
        self._stepper = self.stepper(self.model, self.meta_optimizer, keep_graph=False)
        # If the first parameters allowed no teleports, these may allow them.
        if known is not None and not (before is not None and before.is_off_from_the_start):
            self._stepper.turn_teleports_off(known)
        self._complete_states()
        if before is None or self._watch.device != self._members.device:
            self._watch = FiniteWatch(self._members.device)
        self._remember_rule()

    def _remember_rule(self) -> None:
        # Computed each time, since the rule may have been meta-trained since.
        rule = identity(self.rule, self.meta_optimizer)
        remember(self, **{RULE: rule, TELEPORTS_OFF: self.teleports_off})

    @property
    def places(self) -> list[tuple[int, int]]:
        """(group, position in it) of each parameter, in the order in which rules see them."""
        return self._members.places

    def stepper(
        self, model: nn.Module | None, optimizer: MetaOptimizer, keep_graph: bool
    ) -> Stepper:
        """Make a ``Stepper`` for the model or a functional copy of it (see ``differentiable``)."""
        return Stepper(
            optimizer,
            self._replicas.inputs_unknown() or chain_within(model, self.model, self.in_order()),
            movable_within(self.model, self.in_order(), optimizer.engine),
            self.in_order(),
            Told(self.rule.config),
            self.full_batch,
            keep_graph,
            known=remembered(self.param_groups)[TELEPORTS_OFF],
        )

    def shared_state(self) -> list[str]:
        """The keys of the state that belongs to all parameters together."""
        own = self.state[self.in_order()[0]]
        return [key for key in own if self._stepper.layout.is_shared(key)]

    def kept(self, key: str) -> Kept | None:
        """What a tensor in a parameter's state belongs to; None if no rule wrote it."""
        return self._stepper.layout.kept(key)

    def _states(self) -> list[State]:
        if not all(self.state[p].keys() >= self._keys[id(p)] for p in self.in_order()):
            self._complete_states()
        return [self.state[p] for p in self.in_order()]

    def _complete_states(self) -> None:
        """Give parameters that have no state, or one of other shapes, that of before step 1."""
        fresh = self._fresh_states()
        self._keys = {id_: state.keys() for id_, state in fresh.items()}
        for p in chain.from_iterable(group["params"] for group in self.param_groups):
            own = {key: value.to(self.dtype) for key, value in self.state[p].items()}
            new = fresh.get(id(p), {})
            self.state[p] = new | self._stepper.layout.of_the_same_shapes(own, new)

    def _fresh_states(self, teleports_off: str | None = None) -> dict[int, State]:
        """The states before the first step, by the ``id`` of each parameter that has entries."""
        weights = [p.detach().to(self.dtype) for p in self.in_order()]
        states = self._stepper.initial_states(weights, teleports_off)
        return {id(p): state for p, state in zip(self.in_order(), states, strict=True)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one inner step.

        Args:
            closure: evaluates the model, calls ``backward`` and returns the loss.

        Returns:
            The closure's loss, or None without a closure.

        Raises:
            NonFiniteError: if a gradient or a weight is not finite, or would not be after the
                step; then nothing is changed. On CUDA a later step raises it.
            ValueError: if an option of a group is no finite number of at least 0, if the closure
                returns no loss, or if a rule lacks the inputs of layers and lr is not small.
            RuntimeError: after ``eval()``, if gradients are sparse, or if the model has moved to
                another device or dtype, or has other parameters, since the optimizer was made.
            UnknownInputsError: if the rule cannot work without the inputs of the layers.
        """
        require_no_capture(self._members.device)
        self._watch.report()
        require_train_mode(self.param_groups)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._follow()
        self._members.require_in_model(self.model)
        parameters = self.in_order()
        if all(p.grad is None for p in parameters):
            return loss
        require_gradients(parameters, self._members.names)
        with torch.autocast(parameters[0].device.type, enabled=False):
            self._advance(parameters, loss_of(loss))
        return loss

    def _advance(self, parameters: list[Tensor], loss: Tensor | None) -> None:
        of_groups = rates(self.param_groups)
        states = self._states()
        names = self._members.in_order_names
        weights = [unrounded(p, self.state[p], self.dtype) for p in parameters]
        grads = [None if p.grad is None else p.grad.to(self.dtype) for p in parameters]
        loss = None if loss is None else loss.to(weights[0])
        step = remembered(self.param_groups)[STEPS] + 1
        is_well = self._watch.look(step, given(names, weights, grads))
        # A process group may have been set up since the optimizer was made.
        unknown = self._replicas.inputs_unknown()
        if unknown is not None and self._stepper.chain is not None:
            self._stepper.without_inputs(unknown)
        new = self._stepper.advance(
            weights,
            grads,
            self._replicas.loss(loss, weights[0]),
            [of_groups[g] for g, _ in self.places],
            states,
            differentiate_features=False,
            left=share_left(weights[0][None], step - 1, checked(self.horizon)),
        )
        ends_well = self._watch.look(step, made(names, parameters, new, self._stepper.layout))
        if is_well is not None and ends_well is not None:
            new = new.where(is_well & ends_well, weights)
        own = self._stepper.layout.apart(new.after)
        for p, W, state, change in zip(parameters, new.weights, states, own, strict=True):
            if p.grad is not None:
                write(p, W, state)
            state.update(change)
        remember(self, **{STEPS: step, TELEPORTS_OFF: self.teleports_off})
        self._horizon_watch.tell(step, self.horizon)

    def state_dict(self) -> dict[str, Any]:
        """The state as torch saves it, with the reason why teleports are off, if they are."""
        self._follow()
        self._remember_rule()
        return state_dict_of(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, bit for bit, from what ``state_dict`` returned.

        The states are copied. If teleports are off here, they stay off.

        Raises:
            ValueError: if another rule saved it, or one for parameters of other shapes; then
                nothing is changed.
        """
        self._follow()
        owner = Owner(
            groups=self.param_groups,
            names=self._members.names,
            rule=identity(self.rule, self.meta_optimizer),
            layout=self._stepper.layout,
            fresh=self._fresh_states,
        )
        load_state(self, state_dict, owner, self._lay_down)

    def _lay_down(self, loaded: Loaded) -> None:
        for p, state in loaded.states:
            self.state[p] = {k: v.to(p.device, self.dtype, copy=True) for k, v in state.items()}
        if loaded.teleports_off == NOT_SAID:
            # Whether ``full_batch`` was said is asked of this optimizer, not of the saved one.
            self._complete_states()
        elif loaded.teleports_off is not None:
            self._stepper.turn_teleports_off(loaded.teleports_off)
        remember(self, **{STEPS: loaded.steps, AVERAGED: loaded.averaged})
        self._remember_rule()

    def __getstate__(self) -> dict[str, Any]:
        self._follow()
        self._remember_rule()
        own = ("model", "rule", "full_batch", "horizon")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch's load_state_dict calls this with groups and states alone.
        if "rule" in state:
            self.full_batch, self.horizon = state.get("full_batch", False), state.get("horizon")
            self._prepare()
