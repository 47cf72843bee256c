"""Finds all symmetries that satisfy the relations of a model.

Scales and matrices come from components of scales, signs from components modulo 2, orthogonal
matrices from components in which every operation either mixes coordinates by sums or measures their
norm, permutations from ``discovery.permuting``.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from metaopt.symmetry.discovery.bundles import bound, bundles, move_of
from metaopt.symmetry.discovery.equations import solved
from metaopt.symmetry.discovery.families import Family, Moves, families, fibers_of, moves, standing
from metaopt.symmetry.discovery.found import Found, found_of
from metaopt.symmetry.discovery.orthogonal import streams
from metaopt.symmetry.discovery.relabelling import permutations as all_permutations
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.rotating import rotary
from metaopt.symmetry.discovery.signs import with_signs
from metaopt.symmetry.discovery.translating import alone
from metaopt.symmetry.groups import ALL, Group


class Solver:
    """Solves the relations of a model.

    Args:
        relations: what its operations demand.
        tensors: path -> parameter or buffer.
    """

    def __init__(self, relations: Relations, tensors: dict[str, Tensor]) -> None:
        self.relations = relations
        self.tensors = tensors
        self.scales = solved(relations, "scale")
        self.where = standing(relations, self.scales.of, self.scales.sign)
        self.streams = streams(relations, self.scales) if relations.sources else []

    def found(self, permutations: bool) -> list[Found]:
        """All symmetries, in order of the first use of what they move."""
        if not self.relations.sources:
            return []
        result = [*self._continuous(), *self.rotated()]
        turning = {one.entries: one for one in rotary(self.relations, self.scales)}
        result = [turning.get(one.entries, one) for one in result]
        result = with_signs(self.relations, result)
        result += alone(self.relations, self.tensors)
        if permutations:
            heads = {
                slot.path: one.size
                for one in result
                if one.group is Group.LINEAR
                for slot in one.slots
            }
            # The matrices of each head permute its coordinates already.
            result += [
                one
                for one in all_permutations(self.relations)
                if any(heads.get(slot.path) != one.size for slot in one.slots)
            ]
        return sorted(result, key=lambda one: (one.first, one.group is Group.PERMUTATION))

    def rotated(self, equal: bool = True) -> list[Found]:
        """The streams in front of equal gains, or of gains that are not known to be equal."""
        gains = self.relations.equal_gains
        return [one for one in self.streams if gains.issuperset(one.blurs) is equal]

    # Scales and matrices.

    def _continuous(self) -> list[Found]:
        """Scalings, one for each unit, or matrices where every operation mixes."""
        scales = self.scales
        free = ~scales.zero & ~bound(scales)
        mixing = fibers_of(self.relations.fibers, scales.of)
        every = families(self.where, scales.of, free, mixing)
        result = []
        for family, move in zip(every.members, moves(self.where, every), strict=True):
            mixes = family.blocks > 1 or len(np.unique(mixing[family.components])) == 1
            group = Group.LINEAR if family.size > 1 and mixes else Group.SCALING
            allows = ALL if group is Group.LINEAR else frozenset({Group.SCALING})
            result += self._of(family, move, group, allows)
        return result + self._gated()

    def _of(
        self, family: Family, move: Moves, group: Group, allows: frozenset[Group]
    ) -> list[Found]:
        """The symmetry of a family that has entries on both sides."""
        if not move.incoming or not move.outgoing:
            return []
        one = found_of(self.relations, self.scales.of, family, move, group, allows)
        return [] if one is None else [one]

    def _gated(self) -> list[Found]:
        """Scalings where several free exponents multiply, as in gated units."""
        scales = self.scales
        last = {int(x) for labels in self.relations.factors for x in scales.of[labels.ravel()]}
        result: list[Found] = []
        for bundle in bundles(scales, self.where, last):
            for vector in bundle.vectors:
                family, move = move_of(self.where, bundle, vector)
                result += self._of(family, move, Group.SCALING, frozenset({Group.SCALING}))
        return result
