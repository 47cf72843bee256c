"""How each symmetry of a model takes its turn: the best element with all others held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metaopt.landscape.between.align_layout import UNITWISE
from metaopt.landscape.between.align_sides import Log, Shift, Sides
from metaopt.landscape.between.align_solutions import (
    Moments,
    general,
    procrustes,
    scales,
    turned,
)
from metaopt.symmetry.elements import Diagonal, Element, Matrix, ScaledRotation, Signs
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.motion import Tensors

HALVINGS = 8
"""How often a step is halved that does not gain, where a tensor is moved on two axes."""


def is_signed(symmetry: Symmetry) -> bool:
    """Whether units may change their signs."""
    return Group.SIGNS in symmetry.allows


def blocks_of(
    symmetry: Symmetry, sides: Sides, slots: Sequence[Slot], left: Tensors, right: Tensors
) -> Tensor:
    """Sums over slots of x y^T for each block, [blocks, k, k], float64."""
    total = torch.zeros(symmetry.blocks, symmetry.size, symmetry.size, dtype=torch.float64)
    for slot in slots:
        if slot.path in sides.counted:
            x, y = (
                slot.columns(t[slot.path], symmetry.blocks, symmetry.size) for t in (left, right)
            )
            total += (x @ y.mT).double().cpu()
    return total


def moments(symmetry: Symmetry, sides: Sides) -> Moments:
    """The sums of products of a symmetry's weights, of each block, [blocks, k, k]."""
    a, b = sides.a, sides.b

    def of(slots: Sequence[Slot], left: Tensors) -> Tensor:
        return blocks_of(symmetry, sides, slots, left, b)

    return Moments(
        of(symmetry.incoming, a),
        of(symmetry.incoming, b),
        of(symmetry.outgoing, a),
        of(symmetry.outgoing, b),
    )


def unit_moments(symmetry: Symmetry, sides: Sides) -> Moments:
    """The same of each unit alone, [blocks, k]."""

    def of(slots: Sequence[Slot], left: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(symmetry.blocks, symmetry.size, dtype=torch.float64)
        for slot in slots:
            if slot.path in sides.counted:
                x, y = (
                    slot.columns(t[slot.path], symmetry.blocks, symmetry.size)
                    for t in (left, sides.b)
                )
                total += (x * y).sum(-1, dtype=torch.float64).cpu()
        return total

    a, b = sides.a, sides.b
    return Moments(
        of(symmetry.incoming, a),
        of(symmetry.incoming, b),
        of(symmetry.outgoing, a),
        of(symmetry.outgoing, b),
    )


def element_steps(symmetry: Symmetry, s: Tensor) -> Log:
    """Scales with signs as elements."""
    steps: Log = []
    if bool((s < 0).any()):
        steps.append((symmetry, Signs(torch.where(s < 0, -1.0, 1.0).double())))
    if bool((s.abs() != 1).any()):
        steps.append((symmetry, Diagonal(s.abs().log())))
    return steps


def take_turn(symmetry: Symmetry, sides: Sides, is_compact: bool) -> bool:
    """Move b along one symmetry, not a permutation, as is best; whether it gained.

    Args:
        symmetry: the symmetry.
        sides: the models.
        is_compact: whether scales stay, as they do between representatives that are balanced.
    """
    if symmetry.group is Group.TRANSLATION:
        return not is_compact and sides.try_moving([(symmetry, shift(symmetry, sides))])
    for share in range(HALVINGS if _twice(symmetry) and not is_compact else 1):
        steps = _best(symmetry, sides, is_compact, 0.5**share)
        if sides.try_moving(steps):
            return True
    return False


def _twice(symmetry: Symmetry) -> bool:
    """Whether it moves one tensor along two axes, so that the closed forms are not exact."""
    axes = {(slot.path, slot.axis) for slot in symmetry.slots}
    return len(axes) > len({path for path, _ in axes})


def _best(symmetry: Symmetry, sides: Sides, is_compact: bool, share: float) -> Log:
    """The best element, its generator shortened to a share."""
    if symmetry.group in UNITWISE:
        one = unit_moments(symmetry, sides)
        if is_compact or symmetry.group is Group.SIGNS:
            if not is_signed(symmetry):
                return []
            return element_steps(symmetry, torch.where(one.ab + one.cd < 0, -1.0, 1.0).double())
        s, _ = scales(one.ab, one.bb, one.cd, one.dd, is_signed(symmetry))
        return element_steps(symmetry, s.sign() * s.abs() ** share)
    found = moments(symmetry, sides)
    return [(symmetry, _matrix(symmetry, found, is_compact, share))]


def _matrix(symmetry: Symmetry, found: Moments, is_compact: bool, share: float) -> Element:
    if symmetry.group is Group.ROTARY:
        t, u = turned(found, is_compact)
        return ScaledRotation(share * t, share * u)
    if is_compact or symmetry.group is Group.ORTHOGONAL:
        Q = procrustes(found.ab + found.cd)
        return Matrix(Q, Q.mT)
    return Matrix(*general(found))


def shift(symmetry: Symmetry, sides: Sides, to_zero: bool = False) -> Shift:
    """The translation to a, or to where all units' mean is 0."""
    given: dict[str, Tensor] = {}
    for slot in symmetry.incoming:
        x = slot.entries(sides.b[slot.path], symmetry.blocks, symmetry.size).double()
        goal = torch.zeros_like(x)
        if not to_zero:
            goal = slot.entries(sides.a[slot.path], symmetry.blocks, symmetry.size).double()
        v = (goal - x).mean((0, 2))[:, None]
        given[slot.path] = v
    return Shift(given)
