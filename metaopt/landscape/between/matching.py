"""Permutations of hidden units that bring the weights of b close to those of a.

    max over P of  sum over slots <A_slot, P B_slot>

One linear assignment for each permutation, the others held, in random order until nothing gains.

References:
    Ainsworth, Hayase and Srinivasa, Git Re-Basin (arXiv 2209.04836), weight matching.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metaopt.landscape.between.align_sides import Sides
from metaopt.symmetry.elements import Relabelling
from metaopt.symmetry.groups import Symmetry
from metaopt.symmetry.modules import touches_of
from metaopt.symmetry.motion import Tensors

GAIN = 1e-12
"""What a permutation must gain at least."""
ROUNDING = 16
"""The same in units of rounding of the products."""


def assigned(gains: Tensor) -> Tensor:
    """The order p with the largest sum of gains[i, p_i], for each block.

    Args:
        gains: [blocks, k, k].

    Returns:
        int64 [blocks, k].
    """
    from scipy.optimize import linear_sum_assignment

    numbers = gains.detach().double().cpu().numpy()
    orders = [linear_sum_assignment(one, maximize=True)[1] for one in numbers]
    return torch.from_numpy(np.stack(orders).astype(np.int64))


def products(symmetry: Symmetry, a: Tensors, b: Tensors, paths: Sequence[str] | None) -> Tensor:
    """Sums over slots of <a_i, b_j> for units i and j: [blocks, k, k], float64.

    Args:
        symmetry: whose units they are.
        a: tensors by path.
        b: the same of the other model.
        paths: the tensors that count; None: all that are given.
    """
    total = torch.zeros(symmetry.blocks, symmetry.size, symmetry.size, dtype=torch.float64)
    for slot in symmetry.slots:
        if slot.path not in a or (paths is not None and slot.path not in paths):
            continue
        x = slot.columns(a[slot.path], symmetry.blocks, symmetry.size)
        y = slot.columns(b[slot.path], symmetry.blocks, symmetry.size)
        total += (x @ y.mT).double().cpu()
    return total


class Matching:
    """Permutations in turn, each by its assignment.

    Args:
        sides: the models.
        symmetries: the permutations.
    """

    def __init__(self, sides: Sides, symmetries: Sequence[Symmetry]) -> None:
        self.sides, self.symmetries = sides, list(symmetries)
        self.orders = {
            one: torch.arange(one.size).expand(one.blocks, -1).clone() for one in symmetries
        }
        self._seen: dict[Symmetry, list[int]] = {}

    def run(self, numbers: np.random.Generator, most: int) -> int:
        """Sweep until nothing gains, at most so many times; how many sweeps there were."""
        for sweep in range(1, most + 1):
            turns = numbers.permutation(len(self.symmetries))
            if not any([self.step(self.symmetries[i]) for i in turns]):
                return sweep
        return most

    def step(self, symmetry: Symmetry) -> bool:
        """Permute the units of one symmetry as is best with all others held; whether that gains."""
        paths = [slot.path for slot in symmetry.slots]
        state = [self.sides.changes[path] for path in paths]
        if self._seen.get(symmetry) == state:
            return False
        gains = products(symmetry, self.sides.a, self.sides.b, self.sides.counted)
        order = assigned(gains)
        here = gains.diagonal(dim1=1, dim2=2).sum()
        there = gains.gather(2, order[:, :, None]).sum()
        eps = torch.finfo(self.sides.a[paths[0]].dtype).eps
        least = max(GAIN, ROUNDING * eps * float(gains.diagonal(dim1=1, dim2=2).abs().sum()))
        better = bool(there - here > least)
        if better:
            element = Relabelling(order)
            if self._twice(symmetry):
                better = self._gain(symmetry, element) > least
        if better:
            self.sides.move(symmetry, element)
            self.orders[symmetry] = self.orders[symmetry].gather(1, order)
        self._seen[symmetry] = [self.sides.changes[path] for path in paths]
        return better

    def permuted(self, symmetry: Symmetry) -> int:
        """How many units have changed places."""
        order = self.orders[symmetry]
        return int((order != torch.arange(symmetry.size)).sum())

    @staticmethod
    def _twice(symmetry: Symmetry) -> bool:
        """Whether the units number two axes of one tensor."""
        axes = {(slot.path, slot.axis) for slot in symmetry.slots}
        return len(axes) > len({path for path, _ in axes})

    def _gain(self, symmetry: Symmetry, element: Relabelling) -> float:
        """What an element gains."""
        found = touches_of([(symmetry, element)])
        paths = [path for path in found if path in self.sides.counted]
        before = self.sides.squared(paths)
        after = sum(
            float((self.sides.a[p] - self.sides.moved(p, found[p])).double().square().sum())
            for p in paths
        )
        return (before - after) / 2
