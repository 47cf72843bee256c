"""The search of ``align``: which turns are taken, in which order, from where.

Representatives of a and b (``align_representative``) are compared first, where only permutations,
signs and rotations are left; then b goes to a's own scales and frames, and there all groups take
their turns, each of which lowers the distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metaopt.landscape.between.align_layout import Layout, layout
from metaopt.landscape.between.align_representative import can_be_one, inverse, represented
from metaopt.landscape.between.align_sides import Log, Sides
from metaopt.landscape.between.align_turns import take_turn
from metaopt.landscape.between.matching import permute
from metaopt.symmetry.elements import Relabelling
from metaopt.symmetry.groups import Group, Symmetry

Turn = Callable[[Sides], bool]
"""The step of one symmetry; whether it gained."""
Start = Literal["ends", "here", "random"]
SWEEPS = 100
"""Sweeps over all symmetries at most."""
FALLING = 1e-5
"""The share by which a sweep must lower the squared distance, or the search ends."""
ORDER = (Group.LINEAR, Group.ORTHOGONAL, Group.ROTARY, Group.SCALING, Group.SIGNS)
"""Of groups that share weights, the richest first."""


@dataclass(frozen=True)
class Chosen:
    """The symmetries of a model, each with the largest group that leaves the outputs.

    Attributes:
        plans: the permutations, and what they carry.
        others: all others.
        blurred: rotations in front of gains, possible while these are 1.
        gains: the paths of these gains.
        left: those that are left alone, with reasons, by name.
    """

    plans: tuple[Layout, ...]
    others: tuple[Symmetry, ...]
    blurred: tuple[Symmetry, ...]
    gains: frozenset[str]
    left: dict[str, str]

    @property
    def all(self) -> list[Symmetry]:
        """All that are used."""
        return [*(plan.symmetry for plan in self.plans), *self.others, *self.blurred]

    @property
    def can_rest(self) -> bool:
        """Whether there is anything but permutations and signs."""
        return any(one.group is not Group.SIGNS for one in [*self.others, *self.blurred])


def chosen(sides: Sides, symmetries: Iterable[Symmetry]) -> Chosen:
    """What an alignment can use of a model's symmetries."""
    left: dict[str, str] = {}
    permutations: list[Symmetry] = []
    others: list[Symmetry] = []
    blurred: list[Symmetry] = []
    gains: set[str] = set()
    every = [_richest(one) for one in symmetries]
    scalings = {s.path for one in every if one.group is Group.SCALING for s in one.incoming}
    for one in every:
        powers = {slot.power for slot in one.slots if slot.path in sides.counted}
        missing = [slot.path for slot in one.slots if slot.path not in sides.b]
        if missing:
            left[one.short_name] = f"the model has no tensor {missing[0]!r}"
        elif powers - {1}:
            left[one.short_name] = "its weights move by several powers of a scale"
        elif one.group is Group.PERMUTATION:
            permutations.append(one)
        elif not one.blurs:
            others.append(one)
        elif all(path in scalings and can_be_one(sides, path) for path in one.blurs):
            blurred.append(one)
            gains |= set(one.blurs)
        else:
            left[one.short_name] = "gains behind it cannot all be made 1"
    others.sort(key=lambda one: ORDER.index(one.group) if one.group in ORDER else len(ORDER))
    shapes = {path: tensor.shape for path, tensor in sides.b.items()}
    able = [one for one in others if one.group in ORDER]
    plans = tuple(layout(one, able, shapes) for one in permutations)
    return Chosen(plans, tuple(others), tuple(blurred), frozenset(gains), left)


def _richest(symmetry: Symmetry) -> Symmetry:
    """The symmetry with the largest of the groups that it allows."""
    for group in ORDER:
        if group in symmetry.allows:
            return replace(symmetry, group=group)
    return symmetry


class Search:
    """Moves b toward a, from any start, by any route.

    Args:
        sides: the models.
        original: the tensors of b as it was.
        chosen: the symmetries.
        numbers: where random orders come from.

    Attributes:
        sweeps: how many there were.
    """

    def __init__(
        self,
        sides: Sides,
        original: dict[str, Tensor],
        chosen: Chosen,
        numbers: np.random.Generator,
    ) -> None:
        self.sides, self.original, self.chosen, self.numbers = sides, original, chosen, numbers
        self.sweeps = 0

    def reset(self) -> None:
        """Put b back."""
        for path, value in self.original.items():
            self.sides.b[path].copy_(value)
        self.sides.log = []

    def run(
        self, plans: Sequence[Layout], start: Start, alternating: bool, first: Log | None = None
    ) -> tuple[float, Log]:
        """By way of the representatives; the distance and what was done.

        Args:
            plans: the permutations that take turns.
            start: where they start: "ends", from what inputs and outputs say of the layers next to
                them, and so on inwards; "here", where b is; "random".
            alternating: whether they take turns where b has a's scales and frames, too.
            first: what is done to b before.
        """
        self.reset()
        for one, element in first or []:
            self.sides.move(one, element)
        if start == "random":
            for plan in plans:
                order = _random(plan.symmetry, self.numbers)
                self.sides.move(plan.symmetry, Relabelling(order))
        if self.chosen.can_rest:
            self._represented(plans, start)
            self._sweep(self.sides, (), self.chosen.others, False)
            if alternating:
                self._sweep(self.sides, plans, self.chosen.others, False)
        else:
            self._compared(self.sides, plans, start)
        return self.sides.distance(), self.sides.log

    def direct(self) -> tuple[float, Log]:
        """From b itself, in a's scales and frames."""
        self.reset()
        self._sweep(self.sides, self.chosen.plans, self.chosen.others, False)
        return self.sides.distance(), self.sides.log

    def _represented(self, plans: Sequence[Layout], start: Start) -> None:
        sides = self.sides
        ones = {path: tensor.clone() for path, tensor in sides.a.items()}
        aside = Sides(sides.a, ones, sides.counted)
        back = represented(aside, self.chosen.all, self.chosen.gains)
        compared = Sides(ones, sides.b, sides.counted)
        represented(compared, self.chosen.all, self.chosen.gains)
        self._compared(compared, plans, start)
        compared.log += (steps := inverse(back))
        compared.replay(steps)
        sides.log += compared.log

    def _compared(self, sides: Sides, plans: Sequence[Layout], start: Start) -> None:
        """Permutations, signs and rotations alone."""
        if start == "ends":
            _grow(sides, plans, [*self.chosen.others, *self.chosen.blurred])
        self._sweep(sides, plans, [*self.chosen.others, *self.chosen.blurred], True)

    def _sweep(
        self,
        sides: Sides,
        plans: Sequence[Layout],
        others: Sequence[Symmetry],
        is_compact: bool,
    ) -> None:
        """Turns in random order until nothing gains."""
        turns: list[tuple[Symmetry, Turn]] = [
            (plan.symmetry, partial(_permuted, plan, is_compact=is_compact)) for plan in plans
        ]
        turns += [(one, partial(_turned, one, is_compact=is_compact)) for one in others]
        seen: dict[int, list[int]] = {}
        before = sides.distance() ** 2
        for _ in range(SWEEPS if turns else 0):
            self.sweeps += 1
            for i in self.numbers.permutation(len(turns)).tolist():
                symmetry, turn = turns[i]
                paths = [slot.path for slot in symmetry.slots]
                if seen.get(i) == [sides.changes[path] for path in paths]:
                    continue
                turn(sides)
                seen[i] = [sides.changes[path] for path in paths]
            now = sides.distance() ** 2
            if before - now <= FALLING * before:
                break
            before = now


def _grow(sides: Sides, plans: Sequence[Layout], others: Sequence[Symmetry]) -> None:
    """Each symmetry once, by tensors that no symmetry moves that is still to come."""
    carried = {one.symmetry for plan in plans for one in plan.carried}
    turns: list[tuple[Symmetry, Turn]] = [
        (plan.symmetry, partial(_permuted, plan, is_compact=True)) for plan in plans
    ]
    turns += [(one, partial(_turned, one, is_compact=True)) for one in others if one not in carried]
    moving = [{slot.path for slot in one.slots} for one, _ in turns]
    left = set(range(len(turns)))

    def known(i: int) -> frozenset[str]:
        others = set().union(*(moving[j] for j in left if j != i))
        return frozenset((moving[i] & sides.counted) - others)

    def evidence(i: int) -> float:
        return sum(sides.a[path].numel() for path in known(i)) / turns[i][0].size

    while left:
        best = max(sorted(left), key=evidence)
        turns[best][1](sides.seeing(known(best) or sides.counted))
        left.remove(best)


def _permuted(plan: Layout, sides: Sides, is_compact: bool) -> bool:
    return permute(plan, sides, is_compact)


def _turned(symmetry: Symmetry, sides: Sides, is_compact: bool) -> bool:
    return take_turn(symmetry, sides, is_compact)


def _random(symmetry: Symmetry, numbers: np.random.Generator) -> Tensor:
    orders = [numbers.permutation(symmetry.size) for _ in range(symmetry.blocks)]
    return torch.from_numpy(np.stack(orders).astype(np.int64))
