"""How weights move at first along the orbits of linear symmetries: derivatives of exp(t T) w.

    w' = sum_l T_l w,   w'' = sum_l T_l^2 w + 2 sum_{l > k} T_l T_k w

of w(t) = exp(t T_m) .. exp(t T_1) w at t = 0. Everything is differentiable in w and T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.modules import require

Weights = Mapping[str, Tensor]
"""Path of a parameter -> its value."""
Direction = tuple[Symmetry, Tensor]
"""A symmetry and a generator T of it: [blocks, size, size] of a linear or orthogonal group,
[blocks, size] of scalings, [blocks, 2] of a scale and rotation (see ``metaopt.orbit``)."""
LINEAR = (Group.LINEAR, Group.ORTHOGONAL, Group.ROTARY, Group.SCALING)
"""Continuous groups that act linearly on weights."""


def derivatives(
    weights: Weights, directions: Sequence[Direction]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """w' and w'' of exp(t T_m) .. exp(t T_1) w at t = 0, by path; arguments as of ``kappa``.

    With A what T does to w, each factor makes w' + A w of w' and w'' + 2 A w' + A^2 w of w''.
    """
    first = {path: torch.zeros_like(value) for path, value in weights.items()}
    second = dict(first)
    for symmetry, T in directions:
        for slots, is_incoming in ((symmetry.incoming, True), (symmetry.outgoing, False)):
            for slot in slots:
                if slot.path in weights:
                    p, A = slot.path, _Action(symmetry, T, slot, is_incoming)
                    once = A(weights[p])
                    second[p] = second[p] + 2 * A(first[p]) + A(once)
                    first[p] = first[p] + once
    return first, second


def velocity(weights: Weights, directions: Sequence[Direction]) -> dict[str, Tensor]:
    """w' alone, the sum of T w over the directions, which is linear in T; arguments as before."""
    found = {path: torch.zeros_like(value) for path, value in weights.items()}
    for symmetry, T in directions:
        for slots, is_incoming in ((symmetry.incoming, True), (symmetry.outgoing, False)):
            for slot in slots:
                if slot.path in weights:
                    A = _Action(symmetry, T, slot, is_incoming)
                    found[slot.path] = found[slot.path] + A(weights[slot.path])
    return found


def bend(first: Weights, second: Weights) -> Tensor:
    """kappa of a curve that has these derivatives, a scalar; NaN if it stands still."""
    v, a = (torch.cat([some[path].flatten() for path in first]) for some in (first, second))
    squared = v @ v
    return torch.linalg.vector_norm(a - (v @ a) / squared * v) / squared


def chosen_symmetries(
    model: nn.Module, symmetries: Sequence[Symmetry] | None, example: Any = None
) -> list[Symmetry]:
    """The symmetries that act linearly, of those given; None: of those that are found.

    Args:
        model: the model.
        symmetries: all or some of ``metaopt.symmetries(model)``.
        example: inputs to try them on; None: those that assume something are left out.

    Raises:
        ValueError: if there are none, or the model lacks one.
    """
    found = find_symmetries(model, example) if symmetries is None else symmetries
    chosen = [one for one in found if one.group in LINEAR]
    if symmetries is None and example is None:
        chosen = [one for one in chosen if not one.assumes]
    if not chosen:
        groups = ", ".join(sorted({str(one.group) for one in found})) or "none"
        raise ValueError(
            f"the model needs symmetries of a group that acts linearly, one of "
            f"{', '.join(LINEAR)}, found {groups}"
        )
    for symmetry in chosen:
        for slot in symmetry.slots:
            require(model, symmetry, slot)
    # As teleports do: others may move the gains in front of which a stream is rotated.
    return sorted(chosen, key=lambda symmetry: not symmetry.blurs)


class _Action:
    """x -> A x for a tensor of a slot, exp(t A) what exp(t T) does to it.

    Entries of the tensor that are not the slot's go to 0, as A leaves them where they are.
    """

    def __init__(self, symmetry: Symmetry, T: Tensor, slot: Slot, is_incoming: bool) -> None:
        if symmetry.group not in LINEAR:
            raise ValueError(
                f"curves need a group that acts linearly, one of {', '.join(LINEAR)}, found "
                f"{symmetry.group}"
            )
        self._symmetry, self._T, self._slot = symmetry, T, slot
        self._sign = 1 if is_incoming else -1

    def __call__(self, x: Tensor) -> Tensor:
        sizes = self._symmetry.blocks, self._symmetry.size
        moved = self._of_entries(self._slot.entries(x, *sizes))
        return self._slot.apply(torch.zeros_like(x), *sizes, lambda _: moved)

    def _of_entries(self, x: Tensor) -> Tensor:
        """Of entries [copies, blocks, size, any]."""
        T, sign = self._T.to(x), self._sign
        match self._symmetry.group:
            case Group.SCALING:
                return sign * self._slot.power * T[..., None] * x
            case Group.ROTARY:
                scale, angle = T[:, 0, None, None], T[:, 1, None, None]
                first, second = x.unbind(2)
                return sign * scale * x + angle * torch.stack([-second, first], 2)
            case _:
                return (T if sign == 1 else -T.mT) @ x
