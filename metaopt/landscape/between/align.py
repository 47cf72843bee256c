"""``align(a, b)``: b moved along its own symmetries so that it comes close to a."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Literal

from torch import nn

from metaopt.base.streams import Stream, generator
from metaopt.landscape.between.align_report import AlignReport, Moved
from metaopt.landscape.between.align_sides import Sides
from metaopt.landscape.between.matching import Matching
from metaopt.landscape.between.structure import require_equal_structure
from metaopt.landscape.data import Data, pairs_of
from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.groups import Group, Symmetry

By = Literal["weights", "activations", "orbit"]
SWEEPS = 100
"""Sweeps over all symmetries at most."""


def align(
    a: nn.Module,
    b: nn.Module,
    by: By = "weights",
    *,
    data: Data | None = None,
    symmetries: Iterable[Symmetry] | None = None,
    restarts: int = 1,
    seed: int = 0,
) -> tuple[nn.Module, AlignReport]:
    """Move a copy of b along its symmetries so that it comes close to a; its outputs stay.

        min over g of  |w_a - g . w_b|

    Args:
        a: the model that stays.
        b: another of the same structure; it stays too, its copy moves.
        by: "weights", "activations" or "orbit".
        data: a pair (inputs, targets), or an iterable of such pairs.
        symmetries: those to move along, as ``metaopt.symmetries(a, permutations=True)`` lists
            them; None: all of them.
        restarts: how many random orders are tried.
        seed: of the random orders, at least 0.

    Returns:
        b moved, a new module, and what was done.

    Raises:
        ValueError: if the models differ in structure.
    """
    require_alike(a, b)
    a, moved = plain(a), deepcopy(plain(b))
    inputs = None if data is None else next(iter(pairs_of(data)))[0]
    if symmetries is None:
        symmetries = find_symmetries(a, inputs, permutations=True)
    found = [one for one in symmetries if one.group is Group.PERMUTATION]
    sides = Sides.of(a, moved)
    before = sides.distance()
    matching = Matching(sides, found)
    sweeps = matching.run(generator(Stream.ALIGNING, seed), SWEEPS)
    told = tuple(Moved(s, permuted=matching.permuted(s)) for s in found)
    assumes = tuple(dict.fromkeys(s.assumes for s in found if s.assumes))
    report = AlignReport(by, before, sides.distance(), told, sweeps, None, assumes, {})
    return moved, report


def require_alike(a: nn.Module, b: nn.Module) -> None:
    """Raise ``ValueError``, which names the first difference, if two models differ in structure."""
    require_equal_structure([plain(a), plain(b)])
