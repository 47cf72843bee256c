"""What happens to an optimizer's state when the weights that it trains are teleported.

    w -> a w,   m -> a^-T m,   v -> (a^-T)^2 v

m stands for momenta, which are linear in gradients, and v for second moments, which are linear in
the squares of the gradient's entries. The rule for m is exact for every group. The rule for v is
exact for positive scaling (D^-2 if D scales), sign flips, permutations and translations. Where
entries are mixed, the new second moments depend on products of different entries of the gradient,
which no optimizer here keeps: the state of those parameters is reset, with its step count, so that
Adam's bias correction starts again. (Coupled weight decay adds weights to the gradient. These move
by a, not by a^-T, so that the transport of momenta is then inexact, by an error that is small if
the decay is small.)

The optimizer of a learned rule says what each tensor of its state is (``Kept``). Means of gradients
and of their squares move as above; differences of weights, as averages keep them, by the linear
part of what moves weights. What a layer-wise LSTM keeps of a whole parameter stays the same. The
states of a coordinate-wise LSTM are no known function of gradients: a permutation relabels them
with the hidden units, a translation leaves them, and any other element resets those of the
parameters that moved. So does any element where something belongs to sides of matrices. If part of
the state belongs to all parameters together, as that of teleporters and flattened rules does, the
whole state is reset.

Gradients of some parameters that stay (``Symmetry.blurs``) are no known function of the old ones.
They are forgotten, with all state of these parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from metaopt.symmetry.elements import Relabelling, Translation
from metaopt.symmetry.modules import Touches, tensor_at
from metaopt.symmetry.touch import Touch, gradients, squares, weights

DEGREES: dict[type[Optimizer], dict[str, int]] = {
    SGD: {"momentum_buffer": 1},
    Adam: {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    AdamW: {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    Adagrad: {"sum": 2},
    RMSprop: {"square_avg": 2, "grad_avg": 1},
}
"""Optimizer -> name of a tensor of its state -> its degree in the gradient."""


@runtime_checkable
class Learned(Protocol):
    """An optimizer with a learned rule, which can say what its state is."""

    def shared_state(self) -> list[str]:
        """The keys of the state that belongs to all parameters together."""

    def kept(self, key: str) -> Kept | None:
        """What a tensor of a parameter's state belongs to; None for a copy of the parameter."""


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside the wrappers of training libraries; that one holds the state."""
    inner = getattr(optimizer, "optimizer", None)
    return unwrapped(inner) if isinstance(inner, Optimizer) else optimizer


def require_optimizer_of(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise ``ValueError`` if it is not an optimizer, or optimizes no parameter of the model."""
    groups = getattr(optimizer, "param_groups", None)
    if isinstance(optimizer, type) or not isinstance(groups, list | tuple):
        found = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
        raise ValueError(
            f"optimizer: found {found}, expected the optimizer object that trains the model that "
            f"is teleported"
        )
    own = {id(parameter) for parameter in model.parameters()}
    held = [parameter for group in groups for parameter in group["params"]]
    if not any(id(parameter) in own for parameter in held):
        raise ValueError(
            f"optimizer: none of its {len(held)} parameters is one of this model's: pass the "
            f"optimizer that trains the model that is teleported"
        )


def reset(optimizer: Optimizer, model: nn.Module, found: Touches) -> None:
    """Reset the state of every parameter that moved, and all state if parameters share some."""
    shares = isinstance(optimizer, Learned) and optimizer.shared_state()
    if found and (shares or isinstance(optimizer, LBFGS)):
        optimizer.state.clear()
    for path in found:
        optimizer.state.pop(tensor_at(model, path), None)


def forget(optimizer: Optimizer | None, model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Forget the gradients of parameters, and what an optimizer keeps of them.

    Returns:
        The paths of those that had any.
    """
    had = []
    for path in paths:
        parameter = tensor_at(model, path)
        state = None if optimizer is None else optimizer.state.pop(parameter, None)
        if state or parameter.grad is not None:
            had.append(path)
        parameter.grad = None
    return had


@torch.no_grad()
def transport(optimizer: Optimizer, model: nn.Module, found: Touches) -> None:
    """Move the state with the weights; reset it for parameters where no exact rule is known.

    Args:
        optimizer: the optimizer, whose state changes in place.
        model: the model that is teleported.
        found: what the teleport does to each tensor of the model, by path.

    Raises:
        ValueError: if the kind of the optimizer is not known.
    """
    if isinstance(optimizer, Learned):
        if optimizer.shared_state():
            return reset(optimizer, model, found)
        of_parameter: OfParameter = partial(_by_kind, optimizer)
    else:
        of_parameter = _by_degree(optimizer)
    anew = []
    for path, steps in found.items():
        parameter = tensor_at(model, path)
        state = optimizer.state.get(parameter, {})
        new = of_parameter(parameter, state, steps)
        if new is None:
            lost = optimizer.state.pop(parameter, {})
            if isinstance(optimizer, Learned) and _has_begun(optimizer, lost):
                anew.append(path)
            continue
        for name, value in new.items():
            state[name].copy_(value)
    if anew:
        warnings.warn(
            f"state='transport': the learned rule keeps more of {len(anew)} parameters ({anew[0]} "
            f"..) than this teleport moves exactly, so that their state begins anew, with steps as "
            f"large as the first ones: teleport before training, or take a rule whose state moves",
            stacklevel=4,
        )
    return None


@torch.no_grad()
def transport_by(
    optimizer: Optimizer,
    model: nn.Module,
    paths: Iterable[str],
    gradients_at: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None,
) -> None:
    """Move the state of an optimizer by a map of the gradients of all parameters together.

    What is linear in gradients moves by it, and counts as 0 where a parameter keeps none. Squares
    of gradients do not: parameters that keep any, and those of learned rules, are reset.

    Args:
        optimizer: the optimizer, whose state changes in place.
        model: the model that is teleported.
        paths: what moves.
        gradients_at: gradients at w, by path -> those at g . w, float64; None: all that moves is
            reset.
    """
    moving = list(paths)
    if gradients_at is None or isinstance(optimizer, Learned):
        return reset(optimizer, model, {path: [] for path in moving})
    degrees = _degrees(optimizer)
    held: dict[str, dict[str, Tensor]] = {name: {} for name in degrees}
    for path, parameter in model.named_parameters():
        kept = {name: optimizer.state.get(parameter, {}).get(name) for name in degrees}
        found = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
        if all(degrees[name] == 1 for name in found):
            # One that stays may be read by what moves, so that its gradient changes too.
            for name, value in found.items():
                held[name][path] = value
        elif path in moving:
            optimizer.state.pop(parameter, None)
    for own in held.values():
        for path, value in gradients_at({p: m.double() for p, m in own.items()}).items():
            own[path].copy_(value)
    return None


Moved = dict[str, Tensor] | None
"""The state of a parameter after a teleport, or None if it is to be reset."""
OfParameter = Callable[[Tensor, Mapping[str, Tensor], list[Touch]], Moved]


def _by_degree(optimizer: Optimizer) -> OfParameter:
    degrees = _degrees(optimizer)

    def moved(parameter: Tensor, state: Mapping[str, Tensor], steps: list[Touch]) -> Moved:
        found: dict[str, Tensor] = {}
        for name, degree in degrees.items():
            if isinstance(state.get(name), Tensor):
                value = (gradients if degree == 1 else squares)(state[name], steps)
                if value is None:
                    return None
                found[name] = value
        return found

    return moved


def _by_kind(
    optimizer: Learned, parameter: Tensor, state: Mapping[str, Tensor], steps: list[Touch]
) -> Moved:
    """The moved state of a parameter: each tensor, [any, *shape], according to its ``Kept``."""
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        kept = optimizer.kept(key)
        if kept is Kept.TENSORS:
            continue
        if kept is Kept.SIDES or kept is Kept.FRAMED:
            return None
        parts = []
        for part in tensor.reshape(-1, *parameter.shape).unbind():
            moved = _of_kind(part, kept, steps)
            if moved is None:
                return None
            parts.append(moved)
        found[key] = torch.stack(parts).reshape(tensor.shape)
    return found


def _has_begun(optimizer: Learned, state: Mapping[str, Tensor]) -> bool:
    """Whether a step has been taken: states of rules begin as zeros."""
    return any(optimizer.kept(key) is not None and bool(x.any()) for key, x in state.items())


def _of_kind(part: Tensor, kept: Kept | None, steps: list[Touch]) -> Tensor | None:
    match kept:
        case Kept.GRADIENTS:
            return gradients(part, steps)
        case Kept.SQUARES:
            # Of matrices that a rule keeps no squares of there are zeros, which any element keeps.
            return squares(part, steps) if bool(part.any()) else part.clone()
        case Kept.ALL | Kept.FRAMED | Kept.SIDES:
            return None
        case Kept.ENTRIES:
            if not all(isinstance(touch.element, Relabelling | Translation) for touch in steps):
                return None
            return gradients(part, steps)
        case Kept.DIFFERENCES:
            # A translation moves both of two weights alike.
            linear = [touch for touch in steps if not isinstance(touch.element, Translation)]
            return weights(part, linear)
    # Copies of the weights move as the weights do.
    return weights(part, steps)


def require_known(optimizer: Optimizer) -> None:
    """Raise ``ValueError`` if it is not known how the state of an optimizer moves."""
    if not isinstance(optimizer, Learned):
        _degrees(optimizer)


def _degrees(optimizer: Optimizer) -> dict[str, int]:
    if isinstance(optimizer, RMSprop) and any(g["momentum"] for g in optimizer.param_groups):
        # It sums gradients that are divided by their sizes already, which have no degree.
        raise ValueError(
            "state='transport' is known for RMSprop without momentum, found momentum: use "
            "state='reset'"
        )
    try:
        return DEGREES[type(optimizer)]
    except KeyError:
        known = ", ".join(kind.__name__ for kind in DEGREES)
        raise ValueError(
            f"state='transport' is known for {known}, found {type(optimizer).__name__}: "
            f"use state='reset'"
        ) from None


POLICIES: dict[str, Callable[[Optimizer, nn.Module, Touches], None]] = {
    "transport": transport,
    "reset": reset,
}


class Kept(Enum):
    """What a tensor of a rule's state belongs to, and so how it moves when the weights teleport."""

    ALL = "all parameters together"
    TENSORS = "parameters, [B, any, L] with a column for each; stays under every element"
    ENTRIES = "entries of parameters, [B, any, P]; moves under permutations alone"
    GRADIENTS = "the same; linear in gradients, moves like them under every element"
    SQUARES = "the same; linear in squares of gradients"
    DIFFERENCES = "the same; differences of weights, moves like them but for translations"
    FRAMED = "the same; in a frame of the parameter's own, and stays under no element"
    SIDES = "sides of parameters, [B, any, F], ``Rule.sides`` columns for each; the same"
