"""The point of its orbit at which two models are compared: the least squared norm.

Scales of units and frames of linear pairs are no part of what a network does. At the least norm
(``symmetry.balancing``) they are the same for all points of one orbit, up to signs and rotations;
translations go to where the units' mean is 0, and gains in front of which a stream is rotated to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from metaopt.landscape.between.align_sides import Log, Shift, Sides
from metaopt.landscape.between.align_turns import element_steps, shift
from metaopt.symmetry.balancing import balanced
from metaopt.symmetry.conserved import QUADRATIC
from metaopt.symmetry.elements import (
    Diagonal,
    Element,
    Matrix,
    Relabelling,
    ScaledRotation,
)
from metaopt.symmetry.groups import Group, Symmetry

SMALLEST = 1e-6
"""A gain below this share of the largest cannot be made 1."""


def represented(sides: Sides, symmetries: Sequence[Symmetry], gains: Iterable[str]) -> Log:
    """Move b to its representative in place.

    Args:
        sides: b, and which tensors are parameters.
        symmetries: all of them; scalings, linear groups and translations move.
        gains: the paths of gains that shall be 1.

    Returns:
        The elements, in order.
    """
    start = len(sides.log)
    own = [_of_parameters(one, sides) for one in symmetries if one.group in QUADRATIC]
    for one in symmetries:
        if one.group is Group.TRANSLATION:
            sides.move(one, shift(one, sides, to_zero=True))
    unit = set(gains)
    fixed = [one for one in own if unit & {slot.path for slot in one.slots}]
    for one in fixed:
        sides.log += (steps := _to_one(one, sides, unit))
        sides.replay(steps)
    free = [one for one in own if one not in fixed]
    paths = dict.fromkeys(slot.path for one in free for slot in one.slots)
    if free:
        # Each is touched by few symmetries, so that they are moved together, rounded once.
        found = balanced(free, {path: sides.b[path][None] for path in paths}, "weights")
        steps = [(whole, found[one]) for one, whole in _pairs(free, symmetries) if one in found]
        sides.log += steps
        sides.replay(steps)
    return sides.log[start:]


def inverse(log: Log) -> Log:
    """The steps back; translations are left out: a turn finds them again."""
    return [(one, _inverse(element)) for one, element in reversed(log) if _is_kept(element)]


def _is_kept(element: Element) -> bool:
    return not isinstance(element, Shift)


def _inverse(element: Element) -> Element:
    match element:
        case Diagonal():
            (t,) = element._made
            return Diagonal(-t[..., 0])
        case Matrix():
            g, back = element._made
            return Matrix(back, g)
        case ScaledRotation():
            t, u = element._made
            return ScaledRotation(-t[:, 0], -u[:, 0])
        case Relabelling():
            (order,) = element._made
            return Relabelling(order.argsort(1))
    return element


def _of_parameters(symmetry: Symmetry, sides: Sides) -> Symmetry:
    """The symmetry without the buffers that it moves, which have no part in the norm."""
    incoming, outgoing = (
        tuple(slot for slot in slots if slot.path in sides.counted)
        for slots in (symmetry.incoming, symmetry.outgoing)
    )
    return replace(symmetry, incoming=incoming, outgoing=outgoing)


def _pairs(
    free: Sequence[Symmetry], symmetries: Sequence[Symmetry]
) -> list[tuple[Symmetry, Symmetry]]:
    """Symmetries of parameters with those that move buffers too."""
    key = {(one.name, one.group, one.blocks, one.size): one for one in symmetries}
    return [(one, key[one.name, one.group, one.blocks, one.size]) for one in free]


def _to_one(symmetry: Symmetry, sides: Sides, unit: set[str]) -> Log:
    """The scaling that makes gains 1."""
    for slot in symmetry.incoming:
        if slot.path in unit:
            x = slot.columns(sides.b[slot.path], symmetry.blocks, symmetry.size).double()
            return element_steps(symmetry, 1 / x[..., 0].cpu())
    return []


def can_be_one(sides: Sides, path: str) -> bool:
    """Whether no gain of either model is 0, so that all can be made 1."""
    return all(
        bool(x.abs().min() > SMALLEST * x.abs().max()) for x in (sides.a[path], sides.b[path])
    ) and bool(torch.isfinite(sides.b[path]).all())
