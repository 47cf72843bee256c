"""From the units of a symmetry to slots: which entries along an axis belong to which unit.

block[i], unit[i]  for the entries i of an axis  ->  stretches of [copy | block | unit] factors
"""

from __future__ import annotations

import numpy as np

from metaopt.symmetry.discovery.relations import Source
from metaopt.symmetry.discovery.values import Labels
from metaopt.symmetry.groups import Slot

Factors = tuple[tuple[str, int], ...]


def factors(block: Labels, unit: Labels) -> Factors | None:
    """How a stretch of an axis is read, row-major; None if it is not so regular.

    Args:
        block: for each entry the number of its block, from 0.
        unit: for each entry its number within the block, from 0.
    """
    found: list[tuple[str, int]] = []
    strides = {"block": 1, "unit": 1}
    while len(block) > 1:
        role, size = _innermost(block, unit, strides)
        if size <= 1:
            return None
        found.append((role, size))
        if role != "copy":
            strides[role] *= size
        block, unit = block[::size], unit[::size]
    if block[0] or unit[0]:
        return None
    return tuple(found[::-1])


def _innermost(block: Labels, unit: Labels, strides: dict[str, int]) -> tuple[str, int]:
    """The role and the size of the innermost factor."""
    n = len(block)
    still = (block[1:] == block[:-1]) & (unit[1:] == unit[:-1])
    steps = {
        "copy": still,
        "unit": (block[1:] == block[:-1]) & (unit[1:] == unit[:-1] + strides["unit"]),
        "block": (unit[1:] == unit[:-1]) & (block[1:] == block[:-1] + strides["block"]),
    }
    for role, runs in steps.items():
        if not runs[0]:
            continue
        stops = np.flatnonzero(~runs)
        size = int(stops[0]) + 1 if len(stops) else n
        # A run may go on over the end of a chunk by chance: the largest divisor that fits.
        while size > 1 and not _fits(runs, n, size):
            size -= 1
        return role, size
    return "", 1


def _fits(runs: Labels, n: int, size: int) -> bool:
    """Whether all chunks of a size are runs."""
    if n % size:
        return False
    inside = np.ones(n - 1, bool)
    inside[size - 1 :: size] = False
    return bool(runs[inside].all())


def _picked(block: Labels, unit: Labels, moved: Labels) -> tuple[int, Factors] | None:
    """Stretches of one length at one distance, as one slot: where it starts, and its factors."""
    starts = moved[np.flatnonzero(np.diff(moved, prepend=-2) > 1)]
    if len(starts) < 2:
        return None
    length, rest = divmod(len(moved), len(starts))
    distance = int(starts[1] - starts[0])
    start = int(starts[0]) // distance * distance
    offset = int(starts[0]) - start
    even = (np.diff(starts) == distance).all() and not rest
    if not even or distance % length or offset % length:
        return None
    if start + distance * len(starts) > len(block):
        return None
    read = factors(block[moved], unit[moved])
    if read is None:
        return None
    pick = (f"pick:{offset // length}", distance // length)
    found: list[tuple[str, int]] = []
    left = len(starts)
    for role, n in read:
        if left > 1 and n >= left:
            if n % left:
                return None
            found += [(role, left), pick, (role, n // left)]
            left = 0
        elif left > 1:
            found.append((role, n))
            left, rest = divmod(left, n)
            if rest:
                return None
            if left == 1:
                found.append(pick)
                left = 0
        else:
            found.append((role, n))
    return start, tuple(factor for factor in found if factor[1] > 1)


def slots(source: Source, block: Labels, unit: Labels, power: int = 1) -> list[Slot] | None:
    """The slots of one axis of a parameter; None if its units do not lie regularly.

    Args:
        source: the axis.
        block: for each entry the number of its block; -1 where nothing moves.
        unit: for each entry its number within the block.
        power: the exponent with which the entries move.
    """
    moved = np.flatnonzero(block >= 0)
    if not len(moved):
        return []
    owner, _, name = source.path.rpartition(".")
    apart = _picked(block, unit, moved)
    if apart is not None:
        first, picked = apart
        return [Slot(owner, name, source.axis, first, picked, source.rows, source.groups, power)]
    cuts = np.flatnonzero(np.diff(moved) > 1) + 1
    found = []
    for stretch in np.split(moved, cuts):
        start, stop = int(stretch[0]), int(stretch[-1]) + 1
        read = factors(block[start:stop], unit[start:stop])
        if read is None:
            return None
        found.append(Slot(owner, name, source.axis, start, read, source.rows, source.groups, power))
    return found
