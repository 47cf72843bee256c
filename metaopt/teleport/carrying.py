"""Carries out a move that a search found: weights, gradients that they hold, optimizer state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metaopt.symmetry.modules import Touches, tensor_at, touches_of
from metaopt.symmetry.motion import GroupMotion, Motion, Tensors
from metaopt.symmetry.touch import gradients as moved_gradient
from metaopt.symmetry.touch import weights as moved_weight
from metaopt.teleport.optimizer_state import POLICIES, transport_by
from metaopt.teleport.search import Generators


@dataclass(frozen=True)
class Plan:
    """A move that is not made yet.

    Attributes:
        touched: what symmetries that were found do to each tensor, by path.
        others: the other motions with T and all weights after each, float64.
        new: the tensors that move at g . w, by path, computed in float64.
    """

    touched: Touches
    others: Sequence[tuple[Motion, Tensor, Tensors]]
    new: dict[str, Tensor]


@torch.no_grad()
def planned(motions: Sequence[Motion], values: dict[str, Tensor], generators: Generators) -> Plan:
    """What a move would do.

    Args:
        motions: those that are no ``GroupMotion`` come last.
        values: all parameters and buffers of the model.
        generators: one for each motion; motions with T = 0 are left out.
    """
    found = [(m, T) for m, T in zip(motions, generators, strict=True) if bool((T != 0).any())]
    touched = touches_of((m.symmetry, m.element(T)) for m, T in found if isinstance(m, GroupMotion))
    new = {path: moved_weight(values[path], steps) for path, steps in touched.items()}
    others = []
    now: dict[str, Tensor] = {}
    for motion, T in found:
        if isinstance(motion, GroupMotion):
            continue
        now = now or {
            p: v.double() if v.is_floating_point() else v for p, v in {**values, **new}.items()
        }
        after = motion.weights(now, T)
        moved = [path for path, value in after.items() if value is not now[path]]
        new |= {path: after[path].to(values[path].dtype) for path in moved}
        others.append((motion, T, after))
        now = after
    return Plan(touched, others, new)


@torch.no_grad()
def carried_out(plan: Plan, model: nn.Module, optimizer: Optimizer | None, state: str) -> str:
    """Move weights, the gradients that they hold and the optimizer's state; what became of it."""
    had = states_of(optimizer, model)
    if optimizer is not None:
        POLICIES[state](optimizer, model, plan.touched)
    for path, steps in plan.touched.items():
        grad = tensor_at(model, path).grad
        if grad is not None:
            grad.copy_(moved_gradient(grad, steps))
    for motion, T, after in plan.others:
        _others(motion, T, after, model, optimizer, state, plan.new)
    for path, value in plan.new.items():
        tensor_at(model, path).copy_(value)
    return told(optimizer, model, had, list(plan.new))


def _others(
    motion: Motion,
    T: Tensor,
    after: Tensors,
    model: nn.Module,
    optimizer: Optimizer | None,
    state: str,
    new: Tensors,
) -> None:
    """Gradients and state under a motion that is no symmetry that was found."""
    linear = None
    if motion.is_exact:
        moved = {path: value for path, value in after.items() if value.is_floating_point()}
        linear = partial(motion.gradients, moved, T=T)
        # One that stays may be read by what moves, so that its gradient changes too.
        held = {path: p.grad for path, p in model.named_parameters() if p.grad is not None}
        for path, G in linear({path: grad.double() for path, grad in held.items()}).items():
            held[path].copy_(G)
    else:
        for path in new:
            tensor_at(model, path).grad = None
    if optimizer is not None:
        transport_by(optimizer, model, new, linear if state == "transport" else None)


@torch.no_grad()
def written(model: nn.Module, new: dict[str, Tensor], optimizer: Optimizer | None) -> None:
    """Write weights that no symmetry leads to: what is known at the old ones is forgotten.

    Args:
        model: the model.
        new: its new weights, by path; their gradients are set to None.
        optimizer: its state of these parameters is reset.
    """
    if optimizer is not None:
        transport_by(optimizer, model, new, None)
    for path, value in new.items():
        tensor = tensor_at(model, path)
        tensor.copy_(value)
        tensor.grad = None


def states_of(optimizer: Optimizer | None, model: nn.Module) -> set[str]:
    """The paths of the parameters of which an optimizer keeps anything."""
    if optimizer is None:
        return set()
    return {path for path, p in model.named_parameters() if optimizer.state.get(p)}


def told(optimizer: Optimizer | None, model: nn.Module, had: set[str], paths: Sequence[str]) -> str:
    """What became of an optimizer's state, in words.

    Args:
        optimizer: the optimizer, after the teleport.
        model: the model.
        had: the parameters that had a state before it.
        paths: the parameters that moved.
    """
    if optimizer is None:
        return "no optimizer given"
    has = states_of(optimizer, model)
    lost = sorted(had - has)
    moved = [path for path in paths if path in has]
    if not had:
        return "there was none"
    kept = f"moved with the weights for {len(moved)} parameters"
    return f"{kept}, reset for {len(lost)} ({lost[0]} ..)" if lost else kept
