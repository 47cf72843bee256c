"""The learned optimizer as ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from itertools import chain as chained
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.learned import LearnedRule, load
from metaopt.models.find import plain, symmetries
from metaopt.models.units import units_of
from metaopt.optimizers import MetaOptimizer
from metaopt.rules import Kept, State
from metaopt.symmetry import UnitEngine
from metaopt.torch_optim.chain import Chain
from metaopt.torch_optim.precision import HALF, unrounded, working_dtype, write
from metaopt.torch_optim.replicas import Replicas, require_whole
from metaopt.torch_optim.stepper import Rates, Stepper
from metaopt.units import Units

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
"""What ``torch.optim`` takes: parameters, named parameters or groups."""


def _matching(optimizer: MetaOptimizer, device: torch.device, dtype: torch.dtype) -> MetaOptimizer:
    """The meta-optimizer itself where its device and dtype are these, else a copy."""
    own = next(chained(optimizer.parameters(), optimizer.buffers()), None)
    if own is None or (own.device, own.dtype) == (device, dtype):
        return optimizer
    return copy.deepcopy(optimizer).to(device, dtype)


def _of_the_same_shapes(state: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> State:
    """A state without what begins anew: that of units, where there are others than before."""
    return {k: v for k, v in state.items() if k not in fresh or v.shape == fresh[k].shape}


class LearnedOptimizer(torch.optim.Optimizer):
    """w <- g . (w + lr (f - weight_decay w)) on the parameters of a model, with a learned rule.

    Without teleports that is ``w <- (1 - lr weight_decay) w + lr f``, as in AdamW; f is what the
    rule proposes, and its size is the rule's, so that lr is a multiplier: 1 is as meta-trained, and
    torch's schedulers drive it. Generators are multiplied by the smallest lr of all groups.

    **Weights decay under some rules though weight_decay is 0**: layer-wise ones (that of digits)
    have learned a decay of their own, which is in f. It acts on entries that have a gradient at
    this step; learned_decay is a factor on it, and 0 turns it off.

    Each parameter is a matrix for the rule, [out, rest], and a vector one of one column. Parameters
    without a gradient stay as they are, and so does their state. Half-precision parameters are
    advanced in float32 and rounded (``precision``); the rule itself computes in float32, or float64
    where a parameter has it, under autocast too. With ``GradScaler`` call ``scaler.unscale_`` and
    clip, or ``scaler.step``, as for any optimizer.

    The state of a parameter holds the LSTM's, [hidden, *shape] for each tensor of a coordinate-wise
    rule. State that belongs to all parameters together (flattened rules, teleporters) is with the
    first.

    Args:
        model: whose trainable parameters are optimised; or parameters or groups as for any
            optimizer of torch, and then there are no teleports.
        rule: a checkpoint's path, or a ``LearnedRule``.
        lr: factor on updates; of each group without one of its own.
        weight_decay: likewise.
        params: parameters or groups, where they are not all that the model has to train. Whatever
            the groups, rules see parameters in the model's order.
        learned_decay: factor on the weight decay that a rule has learned, of each group without one
            of its own: 1 as it was meta-trained, 0 for none.

    Attributes:
        meta_optimizer: the rule's, or a copy of it on the parameters' device and in ``dtype``.
        dtype: that rules compute in.
        places: (group, position in it) of each parameter, in the order in which rules see them.

    Raises:
        CheckpointError: where the path holds no checkpoint.
        ShapeMismatchError: where a flattened rule was made for other shapes.
        ValueError: where the rule cannot work without teleports and the model allows none, where it
            takes more than one gradient a step, where parameters are not real floating-point
            numbers on one device, where they are parts of a whole on other processes (or may be: a
            list in one of several processes), or where lr, weight_decay or
            learned_decay is negative.

    References:
        Loshchilov and Hutter, Decoupled weight decay regularization (2019).
    """

    _stepper: Stepper

    def __init__(
        self,
        model: nn.Module | Parameters,
        rule: str | Path | LearnedRule,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        params: Parameters | None = None,
        learned_decay: float = 1.0,
    ) -> None:
        self.model = model if isinstance(model, nn.Module) else None
        if params is None:
            params = (
                [p for p in model.parameters() if p.requires_grad]
                if isinstance(model, nn.Module)
                else model
            )
        options = {"lr": lr, "weight_decay": weight_decay, "learned_decay": learned_decay}
        super().__init__(params, options)  # type: ignore[arg-type]
        self.rule = rule if isinstance(rule, LearnedRule) else load(rule)
        self._prepare()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Optimise further parameters, e.g. such as were frozen before."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name in ("lr", "weight_decay", "learned_decay"):
            if not group[name] >= 0:
                self.param_groups.pop()
                raise ValueError(f"{name}: found {group[name]}, expected a number of at least 0")
        # torch adds the first groups from within its own constructor.
        if hasattr(self, "_stepper"):
            before = self.in_order()[0]
            self._prepare()
            self._hand_over(before, self.in_order()[0])

    def _prepare(self) -> None:
        """Everything that follows from rule, model and groups."""
        ranks: dict[int, int] = {}
        if self.model is not None:
            ranks = {id(p): rank for rank, p in enumerate(self.model.parameters())}
        last = len(ranks)
        self.places = sorted(
            (
                (g, i)
                for g, group in enumerate(self.param_groups)
                for i, p in enumerate(group["params"])
                if p.numel()
            ),
            key=lambda place: ranks.get(id(self.param_groups[place[0]]["params"][place[1]]), last),
        )
        parameters = self.in_order()
        require_whole(parameters, self.model)
        self._replicas = Replicas(self.model)
        devices = {p.device for p in parameters}
        if len(devices) != 1:
            names = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"parameters must lie on one device, found {names or 'none'}")
        self._kinds = [(p.device, p.dtype) for p in parameters]
        self.dtype = working_dtype(parameters)
        self.meta_optimizer = _matching(self.rule.optimizer, parameters[0].device, self.dtype)
        if hasattr(self, "_stepper") and self._stepper.chain is not None:
            self._stepper.chain.release()
        found = "no model was given" if self.model is None else self.chain_of(self.model)
        self._stepper = Stepper(self.meta_optimizer, found, self.units(), parameters)
        self._complete_states()

    def in_order(self) -> list[Tensor]:
        """All parameters, in the order in which rules see them."""
        return [self.param_groups[g]["params"][i] for g, i in self.places]

    def shared_state(self) -> list[str]:
        """The keys of the state that belongs to all parameters together."""
        return self._shared_of(self.in_order()[0])

    def _shared_of(self, parameter: Tensor) -> list[str]:
        return [key for key in self.state[parameter] if self._stepper.layout.is_shared(key)]

    def kept(self, key: str) -> Kept | None:
        """What a tensor in a parameter's state belongs to; None for what is no rule's."""
        return self._stepper.layout.moves(key) if "." in key else None

    def units(self) -> Units | str:
        """The hidden units that the rule may scale, or why it may scale none."""
        if not isinstance(self.meta_optimizer.engine, UnitEngine):
            return "the rule scales no units"
        if self.model is None:
            return "no model was given"
        parameters = self.in_order()
        if any(p.dtype in HALF for p in parameters):
            return "its weights are too coarse to carry out an exact action"
        model = plain(self.model)
        names = {id(p): name for name, p in model.named_parameters()}
        # Parameters of other models take their places, under what is no path.
        shapes = {names.get(id(p), f"<{i}>"): p.shape for i, p in enumerate(parameters)}
        units = units_of(symmetries(model), shapes)
        if units is None:
            return "no hidden units can be scaled; metaopt.symmetries(model) says why"
        return units.to(parameters[0].device)

    def chain_of(self, model: nn.Module, keep_graph: bool = False) -> Chain | str:
        """The model, or a copy of it, as a chain, or why it is none.

        Args:
            model: of the structure of this optimizer's.
            keep_graph: record the inputs of its layers with their graph.
        """
        if self.model is not None:
            whole = {id(p) for p in self.model.parameters() if p.requires_grad}
            if whole != {id(p) for p in self.in_order()}:
                return "the parameters to optimise are not those of the model"
        return self._replicas.inputs_unknown() or Chain.of(model, keep_graph)

    def _complete_states(self, is_new: bool = True) -> None:
        """The state before the first step, for parameters that have none.

        Args:
            is_new: what there is comes from elsewhere, and is kept where its shapes still fit.
        """
        parameters = self.in_order()
        if not is_new and all(self.state[p] for p in parameters):
            return
        weights = [p.detach().to(self.dtype) for p in parameters]
        for p, state in zip(parameters, self._stepper.initial_states(weights), strict=True):
            self.state[p] = state | _of_the_same_shapes(self.state[p], state)

    def _hand_over(self, before: Tensor, first: Tensor) -> None:
        """What belongs to all parameters goes to the one that is the first now."""
        if first is not before:
            state, shared = self.state[before], self._shared_of(before)
            moved = {key: state.pop(key) for key in shared}
            self.state[first].update(_of_the_same_shapes(moved, self.state[first]))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One inner step.

        Args:
            closure: evaluates the model, calls ``backward`` and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: where gradients are sparse, or the model has moved to another device or
                dtype since the optimizer was made.
            UnknownInputsError: where the rule reads the inputs of layers, and there was no forward
                pass of the model, or not of its layers in order.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = self.in_order()
        if all(p.grad is None for p in parameters):
            return loss
        if [(p.device, p.dtype) for p in parameters] != self._kinds:
            raise RuntimeError(
                "the model has another device or dtype than when this optimizer was made: make it "
                "after model.to(...)"
            )
        if any(p.grad is not None and p.grad.is_sparse for p in parameters):
            raise RuntimeError("LearnedOptimizer takes no sparse gradients: use sparse=False")
        with torch.autocast(parameters[0].device.type, enabled=False):
            self._advance(parameters, loss)
        return loss

    def _advance(self, parameters: list[Tensor], loss: Any) -> None:
        self._complete_states(is_new=False)
        states = [self.state[p] for p in parameters]
        weights = [
            unrounded(p, state, self.dtype) for p, state in zip(parameters, states, strict=True)
        ]
        groups = [self.param_groups[g] for g, _ in self.places]
        own = None if loss is None else torch.as_tensor(loss).to(weights[0])
        # Processes may have come together since the optimizer was made.
        unknown = self._replicas.inputs_unknown()
        if unknown is not None and self._stepper.chain is not None:
            self._stepper.without_inputs(unknown)
        new, changed = self._stepper.step(
            weights,
            [None if p.grad is None else p.grad.to(self.dtype) for p in parameters],
            self._replicas.loss(own, weights[0]),
            [Rates.of(group) for group in groups],
            states,
            differentiate_features=False,
        )
        for p, W, state, change in zip(parameters, new, states, changed, strict=True):
            if p.grad is not None:
                write(p, W, state)
            state.update(change)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with why teleports were turned off on the way (``teleports_off``)."""
        return super().state_dict() | {"teleports_off": self._stepper.teleports_off}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on, bit for bit, from what ``state_dict`` returned."""
        super().load_state_dict(state_dict)
        # torch has cast the states to the parameters' dtype; in half precision that loses bits.
        saved = chained.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chained.from_iterable(group["params"] for group in self.param_groups)
        for index, p in zip(saved, own, strict=True):
            state = state_dict["state"].get(index, {})
            self.state[p] = {key: value.to(p.device, self.dtype) for key, value in state.items()}
        why = state_dict.get("teleports_off")
        if why is not None and self._stepper.optimizer.engine is not None:
            self._stepper.turn_teleports_off(why)
        self._complete_states()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"model": self.model, "rule": self.rule}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch's load_state_dict passes groups and states alone.
        if "rule" in state:
            self._prepare()
