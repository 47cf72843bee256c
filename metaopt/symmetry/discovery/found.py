"""A symmetry as the solvers find it, before it has a name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from metaopt.symmetry.discovery.families import Family, Moves
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.values import FIXED, Labels
from metaopt.symmetry.groups import Group, Slot


@dataclass(frozen=True)
class Found:
    """A symmetry without its name.

    Attributes:
        group: the group.
        size: the units of a block.
        blocks: the number of blocks.
        incoming: what moves by g.
        outgoing: what moves by g^-T.
        allows: all groups that act.
        first: the place of its first entry, by which symmetries are ordered.
        blurs: see ``Symmetry``.
        assumes: what is assumed where its coordinates pass.
        free: see ``Symmetry``.
    """

    group: Group
    size: int
    blocks: int
    incoming: tuple[Slot, ...]
    outgoing: tuple[Slot, ...]
    allows: frozenset[Group]
    first: int
    blurs: tuple[str, ...] = ()
    assumes: str = ""
    free: int = 0

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots."""
        return (*self.incoming, *self.outgoing)

    @property
    def entries(self) -> frozenset[Slot]:
        """The entries that it moves, whichever way; of even powers none change sign."""
        return frozenset(replace(s, power=1, factors=()) for s in self.slots if s.power % 2)


def found_of(
    relations: Relations,
    of: Labels,
    family: Family,
    move: Moves,
    group: Group,
    allows: frozenset[Group],
    blurs: tuple[str, ...] = (),
) -> Found | None:
    """The symmetry of a family, if its entries lie in an order."""
    if not move.regular:
        return None
    assumes = assumed(relations, of, family.components)
    incoming, outgoing = tuple(move.incoming), tuple(move.outgoing)
    return Found(
        group, family.size, family.blocks, incoming, outgoing, allows, family.first, blurs, assumes
    )


def assumed(relations: Relations, of: Labels, own: Labels) -> str:
    """What is assumed where the coordinates of some components pass."""
    inside = np.zeros(len(of), bool)
    inside[own] = True
    said = [
        text for labels, text in relations.assumptions if inside[of[labels[labels != FIXED]]].any()
    ]
    return " and ".join(dict.fromkeys(said))
