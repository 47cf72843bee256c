"""Permutations of hidden units that bring the weights of b close to those of a.

    max over P of  sum over slots <A_slot, P B_slot>

One linear assignment for each permutation, the others held, in random order until nothing gains.
What a permutation carries (frames of heads, signs and scales of units) is chosen for each pair of
units: a sum of singular values for frames, |p| for signs, the best scale in closed form. For one
hidden layer the assignment is the optimum.

References:
    Ainsworth, Hayase and Srinivasa, Git Re-Basin (arXiv 2209.04836), weight matching; Vogelstein
    et al., Fast approximate quadratic programming for graph matching (2015), where units number two
    axes of one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metaopt.landscape.between.align_layout import UNITWISE, Carried, Layout
from metaopt.landscape.between.align_sides import Log, Sides
from metaopt.landscape.between.align_solutions import procrustes, scales
from metaopt.landscape.between.align_turns import element_steps, is_signed
from metaopt.symmetry.elements import Matrix, Relabelling, ScaledRotation
from metaopt.symmetry.groups import Group, Slot, Symmetry

STEPS = 30
"""Steps of the quadratic assignment at most."""


def assigned(gains: Tensor) -> Tensor:
    """The order p with the largest sum of gains[i, p_i], for each block, int64 [blocks, k].

    Args:
        gains: [blocks, k, k].
    """
    # scipy takes a tenth of a second to import.
    from scipy.optimize import linear_sum_assignment

    numbers = gains.detach().double().cpu().numpy()
    orders = [linear_sum_assignment(one, maximize=True)[1] for one in numbers]
    return torch.from_numpy(np.stack(orders).astype(np.int64))


def permute(plan: Layout, sides: Sides, is_compact: bool) -> bool:
    """Permute the units of one symmetry as is best with all others held; whether it gained.

    Args:
        plan: the permutation and what it carries.
        sides: the models.
        is_compact: whether scales stay, as they do between representatives that are balanced.
    """
    found = [_Pairs(one, sides, is_compact) for one in plan.carried]
    gains = _products(plan, sides) + sum(one.gains() for one in found)
    order = assigned(gains)
    if sides.try_moving(_steps(plan.symmetry, order, found)):
        return True
    if _twice(plan.symmetry):
        order = _quadratic(plan, sides, gains)
        return sides.try_moving(_steps(plan.symmetry, order, found))
    return False


def _steps(symmetry: Symmetry, order: Tensor, found: Sequence[_Pairs]) -> Log:
    steps: Log = [] if _is_still(order) else [(symmetry, Relabelling(order))]
    for one in found:
        steps += one.steps(order)
    return steps


def _is_still(order: Tensor) -> bool:
    return bool((order == torch.arange(order.shape[1])).all())


def _rows(slot: Slot, tensor: Tensor, symmetry: Symmetry) -> Tensor:
    x = slot.columns(tensor, symmetry.blocks, symmetry.size)
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _products(plan: Layout, sides: Sides) -> Tensor:
    """Sums over what nothing carried moves of <a_i, b_j>, [blocks, k, k], float64."""
    one = plan.symmetry
    total = torch.zeros(one.blocks, one.size, one.size, dtype=torch.float64)
    for slot, kept in plan.rest:
        if slot.path not in sides.counted:
            continue
        a = sides.a[slot.path]
        x = _rows(slot, a if kept is None else a * kept.to(a.device), one)
        total += (x @ _rows(slot, sides.b[slot.path], one).mT).double().cpu()
    return total


class _Pairs:
    """What a carried symmetry gains for each pair of units, one of a and one of b.

    Args:
        carried: the symmetry and its parts.
        sides: the models.
        is_compact: whether scales stay.
    """

    def __init__(self, carried: Carried, sides: Sides, is_compact: bool) -> None:
        self.carried, self.symmetry = carried, carried.symmetry
        self.is_unitwise = self.symmetry.group in UNITWISE
        self.is_compact = is_compact or self.symmetry.group is Group.SIGNS
        self._ab, self._b = self._of(self.symmetry.incoming, sides)
        self._cd, self._d = self._of(self.symmetry.outgoing, sides)

    def gains(self) -> Tensor:
        """[blocks, k, k] of the permutation's units."""
        parts = self.carried.parts
        values = self._values()
        blocks, units, each = parts.shape
        total = torch.zeros(blocks, units, units, dtype=torch.float64)
        for i in range(each):
            row, column = parts[:, :, None, i], parts[:, None, :, i]
            total += values[row, column]
        return total

    def steps(self, order: Tensor) -> Log:
        """Its best element, once the units are in an order."""
        parts = self.carried.parts
        source = parts.gather(1, order[:, :, None].expand(parts.shape)).flatten()
        there = torch.empty_like(source)
        there[parts.flatten()] = source
        here = torch.arange(len(there))
        p, q = self._ab[here, there], self._cd[here, there]
        one = self.symmetry
        if self.is_unitwise:
            signed = is_signed(one)
            if not self.is_compact:
                s, _ = scales(p, self._b[there], q, self._d[there], signed)
            elif signed:
                s = torch.where(p + q < 0, -1.0, 1.0).double()
            else:
                return []
            return element_steps(one, s.reshape(one.blocks, one.size))
        if one.group is Group.ROTARY:
            M = p + q
            u = torch.atan2(M[:, 1, 0] - M[:, 0, 1], M[:, 0, 0] + M[:, 1, 1])
            return [(one, ScaledRotation(torch.zeros_like(u), u))]
        Q = procrustes(p + q)
        return [(one, Matrix(Q, Q.mT))]

    def _values(self) -> Tensor:
        """What each pair of parts gains, [parts, parts]."""
        M = self._ab + self._cd
        if not self.is_unitwise:
            if self.symmetry.group is Group.ROTARY:
                across = M[..., 1, 0] - M[..., 0, 1]
                return torch.hypot(M[..., 0, 0] + M[..., 1, 1], across)
            return torch.linalg.svdvals(M).sum(-1)
        signed = is_signed(self.symmetry)
        if self.is_compact:
            return M.abs() if signed else M
        _, least = scales(self._ab, self._b[None], self._cd, self._d[None], signed)
        return -least / 2

    def _of(self, slots: Sequence[Slot], sides: Sides) -> tuple[Tensor, Tensor]:
        """Products of all pairs of parts, and of units the squares of b."""
        one = self.symmetry
        count = one.blocks * one.size
        total = torch.zeros(count, count, dtype=torch.float64)
        squares = torch.zeros(count, dtype=torch.float64)
        for slot in slots:
            if slot.path in sides.counted:
                x, y = (_rows(slot, t[slot.path], one).flatten(0, 1) for t in (sides.a, sides.b))
                total += (x @ y.mT).double().cpu()
                squares += y.square().sum(1, dtype=torch.float64).cpu()
        if self.is_unitwise:
            return total, squares
        apart = total.reshape(one.blocks, one.size, one.blocks, one.size)
        return apart.transpose(1, 2).contiguous(), squares


def _twice(symmetry: Symmetry) -> bool:
    """Whether the units number two axes of one tensor."""
    axes = {(slot.path, slot.axis) for slot in symmetry.slots}
    return len(axes) > len({path for path, _ in axes})


def _quadratic(plan: Layout, sides: Sides, gains: Tensor) -> Tensor:
    """An order for units that number two axes of some tensors, by Frank and Wolfe's method."""
    eye = torch.eye(plan.symmetry.size, dtype=torch.float64).expand_as(gains)
    linear = gains - _bilinear(plan, sides, eye)
    D = torch.full_like(gains, 1 / plan.symmetry.size)
    for _ in range(STEPS):
        slope = _bilinear(plan, sides, D)
        goal = _matrix(assigned(linear + slope))
        E = goal - D
        first = ((linear + slope) * E).sum()
        second = (_bilinear(plan, sides, E) * E).sum() / 2
        share = 1.0 if second >= 0 else float((-first / (2 * second)).clamp(0, 1))
        if share * float(first) <= 1e-12 * float(gains.abs().sum()):
            break
        D = D + share * E
    return assigned(D)


def _bilinear(plan: Layout, sides: Sides, D: Tensor) -> Tensor:
    """The part of the slope at D that depends on D: of tensors with two numbered axes."""
    one = plan.symmetry
    paths = [slot.path for slot in one.slots]
    total = torch.zeros_like(D)
    for i, slot in enumerate(one.slots):
        others = [
            other
            for j, other in enumerate(one.slots)
            if j != i and other.path == slot.path and other.axis != slot.axis
        ]
        if not others or slot.path not in sides.counted or len(set(paths)) == len(paths):
            continue
        moved = sides.b[slot.path].double()
        for other in others:
            moved = other.apply(moved, one.blocks, one.size, lambda x: D.to(x.device) @ x)
        x, y = (_rows(slot, t, one) for t in (sides.a[slot.path].double(), moved))
        total += (x @ y.mT).cpu()
    return total


def _matrix(order: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(order, order.shape[1]).double()
