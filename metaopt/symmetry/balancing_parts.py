"""The groups of a model as they go, each alone, to the least squared norm of a stack of tensors.

``symmetry.balancing`` takes them in turn.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metaopt.symmetry.elements import Diagonal, Element, Matrix, ScaledRotation
from metaopt.symmetry.geometric_mean import RANK, least, ranks
from metaopt.symmetry.groups import Group, Slot, Symmetry

Like = Literal["weights", "gradients"]

RANKS: dict[Like, float] = {"weights": RANK, "gradients": 1e-8}
"""Below this share of the largest a singular value counts as 0: stacks are roots of moments."""
NEWTON = 30
"""Steps of Newton's method where a unit's weights move by several powers."""
LEAVES = "there is no minimum, as its elements would leave for infinity"
MEET = "its two sides do not meet in all directions"
FAR = 1e8
"""Scales beyond it, and matrices whose norm times that of the inverse is, leave for infinity."""
NOTHING = 1e-20
"""Below this share of the other side, a unit has nothing on one side."""


class RunsOffError(Exception):
    """There is no minimum for some units or blocks of a symmetry.

    Args:
        symmetry: the symmetry.
        which: the units that have none, [blocks, size] or [blocks, 1], or the blocks, [blocks].
        reason: why.
    """

    def __init__(self, symmetry: Symmetry, which: Tensor, reason: str) -> None:
        super().__init__(symmetry, which, reason)
        self.symmetry, self.which, self.reason = symmetry, which, reason


class Tensors:
    """The stacks as they move, with rows on the last axis.

    Where only scalings touch a tensor, the sum of its squares over rows, and over axes along which
    nothing acts, stands for it.
    """

    def __init__(
        self, symmetries: Iterable[Symmetry], stacks: Mapping[str, Tensor], like: Like
    ) -> None:
        self.rank = RANKS[like]
        mixed: set[str] = set()
        axes: dict[str, set[int]] = {}
        for symmetry in symmetries:
            for slot in symmetry.slots:
                if slot.path not in stacks:
                    raise ValueError(f"no stack is given for {slot.path!r}")
                own = axes.setdefault(slot.path, set())
                own.add(slot.axis)
                if slot.rows is not None or slot.groups > 1:
                    own |= {0, 1} if slot.groups > 1 else {0}
                if symmetry.group is Group.LINEAR:
                    mixed.add(slot.path)
        self.squares = {path: path not in mixed for path in axes}
        self.now: dict[str, Tensor] = {}
        for path, touched in axes.items():
            value = stacks[path].detach().double()
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"the numbers for {path!r} are not finite")
            value = value.movedim(0, -1)
            if self.squares[path]:
                others = [axis for axis in range(value.dim()) if axis not in touched]
                value = value.square().sum(others, keepdim=True)
            # Slots change it in place.
            self.now[path] = value.clone(memory_format=torch.contiguous_format)

    def norm(self) -> float:
        """The sum of all squares."""
        return sum(
            float(value.sum() if self.squares[path] else value.square().sum())
            for path, value in self.now.items()
        )


@dataclass
class Part(ABC):
    """One symmetry, as it acts on the tensors.

    Attributes:
        symmetry: the symmetry.
        tensors: the tensors.
        sides: each slot with 1 if its entries grow with t, else -1.
        coupled: whether it acts on two axes of one tensor.
        reason: why it stays, or some of its units.
        limit: where the t of units without a minimum would run to; None if there are none.
        moments: x x^T of what moves by g, [blocks, k, k], once the residual has been taken.
        only: which units may move, [blocks, size] or [blocks, 1], or which blocks, [blocks, 1, 1];
            None if all.
    """

    symmetry: Symmetry
    tensors: Tensors
    sides: list[tuple[Slot, int]]
    coupled: bool
    only: Tensor | None
    reason: str = ""
    limit: Tensor | None = None
    moments: Tensor | None = None

    @abstractmethod
    def step(self, longer: float) -> float:
        """Go to the minimum of this group, or a little farther; the residual before."""

    @abstractmethod
    def residual(self) -> float:
        """The gradient along this group, relative to its scale."""

    @abstractmethod
    def element(self) -> Element:
        """Where the steps have led."""


class Scales(Part):
    """Units, or pairs of coordinates, each with a t of its own."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.t = torch.zeros((), dtype=torch.float64)
        self.unseen = torch.zeros((), dtype=torch.bool)

    def _sums(self) -> dict[int, Tensor]:
        """Exponent e -> the sum of squares of what grows as exp(e t), [blocks, size or 1]."""
        blocks, size = self.symmetry.blocks, self.symmetry.size
        found: dict[int, Tensor] = {}
        for slot, sign in self.sides:
            x = slot.entries(self.tensors.now[slot.path], blocks, size)
            total = (x if self.tensors.squares[slot.path] else x.square()).sum((0, 3))
            if self.symmetry.group is Group.ROTARY:
                total = total.sum(1, keepdim=True)
            found[sign * slot.power] = found.get(sign * slot.power, 0) + total
        return found

    def step(self, longer: float) -> float:
        """t += 1/4 log(out / in), with Newton's method where there are several powers."""
        sums = self._sums()
        worst, idle = self._gradient(sums)
        if bool(idle.all()):
            return worst
        t = torch.zeros_like(idle, dtype=torch.float64)
        for _ in range(NEWTON if len(sums) > 2 else 1):
            logs, slopes = [], []
            for side in (1, -1):
                terms = [side * e * c * (2 * e * t).exp() for e, c in sums.items() if side * e > 0]
                total = torch.stack(terms).sum(0)
                powers = [abs(e) for e in sums if side * e > 0]
                mean = sum(p * term for p, term in zip(powers, terms, strict=True)) / total
                logs.append(total.log())
                slopes.append(2 * mean)
            change = (logs[0] - logs[1]) / (slopes[0] + slopes[1])
            t = torch.where(idle, 0, t - change)
        # Units that pull at each other in one tensor would all go too far.
        self._move(t * (longer / 2 if self.coupled else longer))
        return worst

    def residual(self) -> float:
        """|sum of e c_e| / sum of |e| c_e, the largest of all units that can move."""
        return self._gradient(self._sums())[0]

    def _gradient(self, sums: dict[int, Tensor]) -> tuple[float, Tensor]:
        """The residual, and which units have nothing on one side."""
        plus, minus = (
            sum((side * e * c for e, c in sums.items() if side * e > 0), torch.zeros(()))
            for side in (1, -1)
        )
        least_of, most = torch.minimum(plus, minus), torch.maximum(plus, minus)
        idle = (least_of <= NOTHING * most).expand(next(iter(sums.values())).shape)
        self.unseen = idle & (most == 0)
        lost = int((idle & (most > 0)).sum())
        if lost:
            runs = torch.where(plus > minus, -torch.inf, torch.inf).expand(idle.shape)
            runs = torch.where(idle & (most > 0), runs, 0)
            self.limit = runs[:, 0] if self.symmetry.group is Group.ROTARY else runs
            self.reason = f"{lost} of {idle.numel()} units have nothing on one side, and stay"
        if self.only is not None:
            idle = idle | ~self.only
        relative = ((plus - minus).abs() / (plus + minus)).masked_fill(idle, 0)
        return float(relative.max()), idle

    def _move(self, t: Tensor) -> None:
        blocks, size = self.symmetry.blocks, self.symmetry.size
        self.t = self.t + t
        leaves = ~(self.t.abs() < math.log(FAR))
        if bool(leaves.any()):
            raise RunsOffError(self.symmetry, leaves, LEAVES)
        for slot, sign in self.sides:
            squared = 2 if self.tensors.squares[slot.path] else 1
            factor = (squared * sign * slot.power * t).exp()[..., None]

            def scaled(x: Tensor, factor: Tensor = factor) -> Tensor:
                return factor * x

            slot.change(self.tensors.now[slot.path], blocks, size, scaled)

    def element(self) -> Element:
        """exp(t)."""
        shape = (self.symmetry.blocks, self.symmetry.size)
        if self.symmetry.group is Group.ROTARY:
            t = self.t.expand(shape[0], 1)[:, 0].clone()
            return ScaledRotation(t, torch.zeros_like(t))
        return Diagonal(self.t.expand(shape).clone())


class Matrices(Part):
    """A matrix for each block."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        eye = torch.eye(self.symmetry.size, dtype=torch.float64)
        self.g = self.inverse = eye.expand(self.symmetry.blocks, -1, -1)

    def _roots(self) -> list[Tensor]:
        """R with R^T R = x x^T of what moves by g, and of what moves by g^-T, [blocks, k, k]."""
        blocks, size = self.symmetry.blocks, self.symmetry.size
        eye = torch.eye(size, dtype=torch.float64, device=self._device())
        found = []
        for side in (1, -1):
            columns = [torch.zeros(blocks, size, size, dtype=torch.float64, device=self._device())]
            for slot, sign in self.sides:
                if sign == side:
                    columns.append(slot.columns(self.tensors.now[slot.path], blocks, size))
            root = torch.linalg.qr(torch.cat(columns, 2).mT, mode="r").R
            # Blocks that stay count as balanced.
            found.append(root if self.only is None else torch.where(self.only, root, eye))
        return found

    def _device(self) -> torch.device:
        return self.tensors.now[self.sides[0][0].path].device

    def step(self, longer: float) -> float:
        """g = P^(1/2) g, P the geometric mean."""
        a, b = self._roots()
        g, inverse, exists = least(a, b, longer / 2 if self.coupled else longer, self.tensors.rank)
        if not bool(exists.all()):
            first, second = (ranks(one, self.tensors.rank)[~exists][0] for one in (a, b))
            reason = f"ranks {first} and {second} of {self.symmetry.size}"
            raise RunsOffError(self.symmetry, ~exists, f"{MEET}: {reason}")
        after = g @ self.g.to(g), self.inverse.to(g) @ inverse
        far = torch.linalg.matrix_norm(after[0]) * torch.linalg.matrix_norm(after[1])
        leaves = ~(far < FAR * self.symmetry.size)
        if bool(leaves.any()):
            raise RunsOffError(self.symmetry, leaves, LEAVES)
        self.g, self.inverse = after
        for slot, sign in self.sides:
            by = g if sign > 0 else inverse.mT

            def mixed(x: Tensor, by: Tensor = by) -> Tensor:
                return by @ x

            slot.change(
                self.tensors.now[slot.path], self.symmetry.blocks, self.symmetry.size, mixed
            )
        return _difference(a, b)

    def residual(self) -> float:
        """||A - B|| / ||A + B||, the largest of all blocks that can move."""
        a, b = self._roots()
        self.moments = a.mT @ a
        return _difference(a, b)

    def element(self) -> Element:
        """g."""
        return Matrix(self.g, self.inverse)


def _difference(a: Tensor, b: Tensor) -> float:
    """||A - B|| / ||A + B|| of the moments of two roots, the largest of all blocks."""
    a, b = a.mT @ a, b.mT @ b
    size = torch.linalg.matrix_norm(a + b).clamp(min=torch.finfo(a.dtype).tiny)
    return float((torch.linalg.matrix_norm(a - b) / size).max())


def part(symmetry: Symmetry, tensors: Tensors, like: Like, only: Tensor | None) -> Part:
    """A symmetry with a quadratic charge, as it acts on tensors; arguments as of ``Part``."""
    sign = 1 if like == "weights" else -1
    sides = [(slot, sign) for slot in symmetry.incoming]
    sides += [(slot, -sign) for slot in symmetry.outgoing]
    paths = [slot.path for slot in symmetry.slots]
    kind = Matrices if symmetry.group is Group.LINEAR else Scales
    axes = {(slot.path, slot.axis) for slot in symmetry.slots}
    return kind(symmetry, tensors, sides, len({*paths}) < len(axes), only)
