"""All permutations of units, of streams, of heads that a model allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metaopt.symmetry.discovery.families import Families, Family, by_role, moves, standing
from metaopt.symmetry.discovery.found import Found, found_of
from metaopt.symmetry.discovery.permuting import Permuting, Seed, StuckError
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.values import Labels
from metaopt.symmetry.groups import Group


@dataclass(frozen=True, eq=False)
class _Followed:
    """A numbering of coordinates that all operations allow.

    Attributes:
        labels: those that it numbers, in order.
        block: the block of each.
        unit: the number of each within its block.
        blocks: the number of blocks, which are permuted apart.
        size: the number of units of each.
    """

    labels: Labels
    block: Labels
    unit: Labels
    blocks: int
    size: int

    def numbers(self, seed: Seed) -> bool:
        """Whether it numbers the coordinates of a seed, in some order, as the seed does."""
        if self.size != seed.count or not len(self.labels):
            return False
        place = np.searchsorted(self.labels, seed.labels).clip(max=len(self.labels) - 1)
        if (self.labels[place] != seed.labels).any():
            return False
        if self.blocks == 1:
            return _is_renamed(self.unit[place], seed.unit)
        if seed.whole is None or seed.whole.count != self.blocks * self.size:
            return False
        return _is_renamed(self.block[place] * self.size + self.unit[place], seed.whole.unit)


def _is_renamed(a: Labels, b: Labels) -> bool:
    """Whether equal numbers of a stand at equal numbers of b, and the other way round."""
    pairs = np.unique(a * (int(b.max()) + 1) + b)
    return len(pairs) == len(np.unique(a)) == len(np.unique(b))


def permutations(relations: Relations) -> list[Found]:
    """Permutations of units, of streams, of heads, and of the queries of one key."""
    return _Search(relations).all()


class _Search:
    """The search for permutations.

    Args:
        relations: the relations of a model.
    """

    def __init__(self, relations: Relations) -> None:
        self.relations = relations
        self.permuting = Permuting(relations)
        self.of = np.arange(relations.count)
        self.where = standing(relations, self.of, by_role(relations), relative=False)
        # Written for one permutation after the other: a model may have millions of labels.
        self.number, self.block, self.unit = (np.full(relations.count, -1) for _ in range(3))

    def all(self) -> list[Found]:
        """What each axis of each parameter begins."""
        result: list[Found] = []
        known: list[_Followed] = []
        seen: set[tuple[int, int]] = set()
        for source in self.where.sources:
            done: set[int] = set()
            for seed in self.permuting.seeds(source.labels):
                if seed.whole is not None and id(seed.whole) in done:
                    continue
                # A stream has as many sources as layers that write to it or read it.
                if any(one.numbers(seed) for one in known):
                    done.add(id(seed))
                    continue
                followed = self._followed(seed)
                if followed is None:
                    continue
                done.add(id(seed))
                known.append(followed)
                if not len(followed.labels):
                    continue
                mark = int(followed.labels[0]), len(followed.labels)
                if mark not in seen:
                    seen.add(mark)
                    result += self._found(followed)
        return result

    def _followed(self, seed: Seed) -> _Followed | None:
        """The numbering that a seed begins, block by block if that is possible; None if stuck."""
        try:
            alone = [self.permuting.follow(part) for part in seed.blocks()]
        except StuckError:
            alone = []
        moved = np.concatenate([np.empty(0, np.int64), *(labels for labels, _ in alone)])
        if not alone or len(np.unique(moved)) < len(moved):
            try:
                alone = [self.permuting.follow(seed)]
            except StuckError:
                return None
        labels, units = (np.concatenate(part) for part in zip(*alone, strict=True))
        block = np.repeat(np.arange(len(alone)), [len(own) for own, _ in alone])
        order = np.argsort(labels)
        return _Followed(labels[order], block[order], units[order], len(alone), seed.count)

    def _found(self, found: _Followed) -> list[Found]:
        moved = found.labels
        self.number[moved], self.block[moved], self.unit[moved] = 0, found.block, found.unit
        family = Family(found.blocks, found.size, int(self.where.first[moved].min()), moved)
        families = Families([family], self.number, self.block, self.unit)
        (move,) = moves(self.where, families)
        self.number[moved] = -1
        if not move.incoming and not move.outgoing:
            return []
        only = frozenset({Group.PERMUTATION})
        one = found_of(self.relations, self.of, family, move, Group.PERMUTATION, only)
        return [] if one is None else [one]
