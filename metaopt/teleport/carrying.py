"""Carries out a move that a search found: weights, gradients that they hold, optimizer state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metaopt.symmetry.modules import move, tensor_at, touches_of
from metaopt.symmetry.motion import GroupMotion, Motion
from metaopt.teleport.drift import tensors_at
from metaopt.teleport.optimizer_state import POLICIES, transport_by
from metaopt.teleport.search import Generators


def carried_out(
    model: nn.Module,
    motions: Sequence[Motion],
    generators: Generators,
    optimizer: Optimizer | None,
    state: str,
) -> str:
    """Move weights, the gradients that they hold and the optimizer's state; what became of it."""
    had = states_of(optimizer, model)
    found = [(m, T) for m, T in zip(motions, generators, strict=True) if bool((T != 0).any())]
    groups = [(m.symmetry, m.element(T)) for m, T in found if isinstance(m, GroupMotion)]
    touched = touches_of(groups)
    if optimizer is not None:
        POLICIES[state](optimizer, model, touched)
    move(model, touched)
    paths = dict.fromkeys(touched)
    for motion, T in found:
        if not isinstance(motion, GroupMotion):
            paths |= dict.fromkeys(_moved_by(motion, T, model, optimizer, state))
    return told(optimizer, model, had, list(paths))


@torch.no_grad()
def _moved_by(
    motion: Motion, T: Tensor, model: nn.Module, optimizer: Optimizer | None, state: str
) -> list[str]:
    """The same for one motion that is no symmetry that was found; returns what moved."""
    values = tensors_at(model)
    wide = {p: v.double() if v.is_floating_point() else v for p, v in values.items()}
    new = motion.weights(wide, T)
    paths = [path for path, value in new.items() if value is not wide[path]]
    linear: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    if motion.is_exact:
        moved = {path: value for path, value in new.items() if value.is_floating_point()}
        linear = lambda gradients: motion.gradients(moved, gradients, T)  # noqa: E731
        held = {p: tensor_at(model, p).grad for p in paths}
        there = linear({p: G.double() for p, G in held.items() if G is not None})
        for path, G in there.items():
            grad = held[path]
            assert grad is not None
            grad.copy_(G)
    else:
        for path in paths:
            tensor_at(model, path).grad = None
    if optimizer is not None:
        transport_by(optimizer, model, paths, linear if state == "transport" else None)
    for path in paths:
        tensor_at(model, path).copy_(new[path])
    return paths


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
