"""Moves of named weights along groups, differentiable in their generators: w -> g(T) . w.

    g(0) = 1,   g(-T) = g(T)^-1

Gradients of a loss that is the same at w and at g . w move by the inverse transpose of the
derivative of w -> g . w, so that one gradient gives those on the whole orbit. Everything is written
with operations that ``torch.func`` can differentiate and run side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.linalg import matrix_exp

from metaopt.symmetry.elements import Diagonal, Element, Matrix, ScaledRotation
from metaopt.symmetry.groups import Group, Slot, Symmetry

Tensors = Mapping[str, Tensor]
"""Path of a tensor of a model -> its value, or what moves with it."""

MOVING = (Group.LINEAR, Group.ORTHOGONAL, Group.ROTARY, Group.SCALING)
"""Groups whose elements are exponentials of generators that are matrices or numbers."""


class Motion(Protocol):
    """How generators of one group move the weights of a model.

    A generator T is a tensor [blocks, *any]: the norm of each block is that of T as a matrix.
    """

    @property
    def name(self) -> str:
        """What it is called in reports."""

    @property
    def is_compact(self) -> bool:
        """Whether the orbit is bounded, so that a function on it has a largest value."""

    @property
    def is_exact(self) -> bool:
        """Whether outputs stay on all data, so that gradients at g . w follow from those at w."""

    def zero(self, weights: Tensors) -> Tensor:
        """T = 0, float64 on the CPU.

        Args:
            weights: w, all parameters and buffers of the model.
        """

    def weights(self, weights: Tensors, T: Tensor) -> dict[str, Tensor]:
        """All of w, with g(T) . w in the place of what moves.

        Args:
            weights: w by path; tensors that are missing are left out.
            T: the generator.
        """

    def gradients(self, moved: Tensors, gradients: Tensors, T: Tensor) -> dict[str, Tensor]:
        """What is linear in gradients at w, as it is at g(T) . w; only if ``is_exact``.

        Args:
            moved: g(T) . w.
            gradients: at w, by path; tensors that are missing are left out.
            T: the generator.
        """


@dataclass(frozen=True)
class GroupMotion:
    """A symmetry that ``metaopt.symmetries`` found, as a motion.

        incoming slot x -> g x,   outgoing slot y -> g^-T y,   gradients by g^-T and g

    T is [blocks, size, size] for a general linear group and for an orthogonal one (its skew part
    acts), [blocks, size] for positive scaling, and [blocks, 2] for a scale and rotation, there
    sqrt(2) times logarithm and angle, so that |T| is the norm of the 2 by 2 matrix.

    Attributes:
        symmetry: its group is one of ``MOVING``.
    """

    symmetry: Symmetry
    _positions: dict[tuple[Slot, torch.Size], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        """The symmetry's name."""
        return self.symmetry.name

    @property
    def is_compact(self) -> bool:
        """Whether the group is orthogonal."""
        return self.symmetry.group is Group.ORTHOGONAL

    @property
    def is_exact(self) -> bool:
        """True: what was found holds on all data."""
        return True

    def zero(self, weights: Tensors) -> Tensor:
        """T = 0."""
        blocks, size = self.symmetry.blocks, self.symmetry.size
        shape = {Group.SCALING: (blocks, size), Group.ROTARY: (blocks, 2)}
        wanted = shape.get(self.symmetry.group, (blocks, size, size))
        return torch.zeros(wanted, dtype=torch.float64, device="cpu")

    def element(self, T: Tensor) -> Element:
        """exp T."""
        match self.symmetry.group:
            case Group.LINEAR:
                return Matrix(matrix_exp(T), matrix_exp(-T))
            case Group.ORTHOGONAL:
                g = matrix_exp((T - T.mT) / 2)
                return Matrix(g, g.mT)
            case Group.ROTARY:
                return ScaledRotation(*(T / math.sqrt(2)).unbind(-1))
            case Group.SCALING:
                return Diagonal(T)
        raise ValueError(
            f"symmetry {self.name!r}: a search needs one of {', '.join(MOVING)}, found "
            f"{self.symmetry.group}"
        )

    def weights(self, weights: Tensors, T: Tensor) -> dict[str, Tensor]:
        """All of w, with g(T) . w in the place of what moves."""
        return self._moved(weights, T, by_g=True)

    def gradients(self, moved: Tensors, gradients: Tensors, T: Tensor) -> dict[str, Tensor]:
        """Gradients at g(T) . w; the weights themselves are not read."""
        return self._moved(gradients, T, by_g=False)

    def _moved(self, tensors: Tensors, T: Tensor, by_g: bool) -> dict[str, Tensor]:
        found = dict(tensors)
        made: dict[tuple[torch.dtype, torch.device], Element] = {}
        for slots, is_incoming in ((self.symmetry.incoming, True), (self.symmetry.outgoing, False)):
            for slot in slots:
                if slot.path not in found:
                    continue
                value = found[slot.path]
                kind = (value.dtype, value.device)
                if kind not in made:
                    made[kind] = self.element(T.to(*kind[::-1]))
                element = made[kind].at(slot)
                act = element.act if is_incoming == by_g else element.act_inversely_transposed
                found[slot.path] = self._changed(value, slot, act)
        return found

    def _changed(self, value: Tensor, slot: Slot, act: Callable[[Tensor], Tensor]) -> Tensor:
        """A tensor with the entries of a slot replaced by what ``act`` makes of them."""
        blocks, size = self.symmetry.blocks, self.symmetry.size
        is_whole = slot.rows is None and slot.groups == 1
        is_whole &= slot.length(blocks, size) == value.shape[slot.axis]
        if is_whole and all(role in ("copy", "block", "unit") for role, _ in slot.factors):
            return _along(value, slot, slot.factors or (("block", blocks), ("unit", size)), act)
        key = (slot, value.shape)
        if key not in self._positions:
            numbered = torch.arange(value.numel(), device=value.device).view(value.shape)
            self._positions[key] = slot.entries(numbered, blocks, size)
        where = self._positions[key].to(value.device)
        flat = value.reshape(-1)
        moved = act(flat[where.reshape(-1)].view(where.shape))
        return flat.scatter(0, where.reshape(-1), moved.reshape(-1)).view(value.shape)


def _along(
    value: Tensor,
    slot: Slot,
    factors: Sequence[tuple[str, int]],
    act: Callable[[Tensor], Tensor],
) -> Tensor:
    """The same where the slot is a whole axis, so that reshaping is enough."""
    first = value.movedim(slot.axis, 0)
    apart = first.reshape(*(n for _, n in factors), -1)
    order = [
        i for kind in ("copy", "block", "unit") for i, (r, _) in enumerate(factors) if r == kind
    ]
    ordered = apart.permute(*order, len(order))
    inner = [math.prod(n for r, n in factors if r == kind) for kind in ("copy", "block", "unit")]
    moved = act(ordered.reshape(*inner, -1)).reshape(ordered.shape)
    back = [order.index(i) for i in range(len(order))]
    return moved.permute(*back, len(order)).reshape(first.shape).movedim(0, slot.axis)


@dataclass(frozen=True)
class OwnSymmetry:
    """A symmetry of your own: a group that acts on named parameters, linearly or not.

        act(w, 0) = w,   act(act(w, T), -T) = w,   L(act(w, T)) = L(w)

    ``metaopt.teleport`` and ``Teleporting`` take it beside those of ``metaopt.symmetries``. An
    example are rotations of residuals, whose orbits are circles on which their squares' sum stays.

    Attributes:
        name: what it is called in reports.
        act: ({path: parameter}, T) -> {path: parameter}, those that moved or all; with operations
            of torch alone, so that it can be differentiated.
        shape: the shape of T; () for a single number, such as an angle.
        is_compact: whether orbits are bounded, as those of rotations are. A search on others needs
            a bound on |T|.
    """

    name: str
    act: Callable[[dict[str, Tensor], Tensor], Mapping[str, Tensor]]
    shape: tuple[int, ...] = ()
    is_compact: bool = False

    @property
    def is_exact(self) -> bool:
        """True: the loss stays, as the user says; a teleport measures it."""
        return True

    def zero(self, weights: Tensors) -> Tensor:
        """T = 0, [1, *shape]."""
        return torch.zeros((1, *self.shape), dtype=torch.float64, device="cpu")

    def weights(self, weights: Tensors, T: Tensor) -> dict[str, Tensor]:
        """All of w, with act(w, T) in the place of what moves."""
        some = next(iter(weights.values()))
        moved = self.act(dict(weights), T[0].to(some.device, some.dtype))
        return {path: moved.get(path, value) for path, value in weights.items()}

    def gradients(self, moved: Tensors, gradients: Tensors, T: Tensor) -> dict[str, Tensor]:
        """J^T G at g . w, J the derivative there of the inverse, w' -> act(w', -T)."""
        pull: Callable[[Tensors], tuple[dict[str, Tensor]]]
        _, pull = torch.func.vjp(lambda w: self.weights(w, -T), dict(moved))  # type: ignore[misc]
        given = {
            path: gradients[path] if path in gradients else torch.zeros_like(value)
            for path, value in moved.items()
        }
        (found,) = pull(given)
        return {path: found[path] for path in gradients}


def motions_of(symmetries: Iterable[Symmetry | Motion]) -> tuple[list[Motion], dict[str, str]]:
    """The motions that a search can use, those that were found first; and why others are left out.

    Returns:
        The motions, and {name: reason} of symmetries that no generator moves.
    """
    found: list[Motion] = []
    others: list[Motion] = []
    left: dict[str, str] = {}
    for one in symmetries:
        if not isinstance(one, Symmetry):
            others.append(one)
        elif one.group not in MOVING:
            left[one.short_name] = f"{one.group} has no generators to search"
        elif one.blurs:
            left[one.short_name] = "gradients of the gains behind it at other points are not known"
        else:
            found.append(GroupMotion(one))
    return found + others, left


def moved_weights(
    motions: Sequence[Motion], weights: Tensors, generators: Sequence[Tensor]
) -> dict[str, Tensor]:
    """g_m .. g_1 . w, the motions applied in order."""
    now = dict(weights)
    for motion, T in zip(motions, generators, strict=True):
        now = motion.weights(now, T)
    return now


def moved_gradients(
    motions: Sequence[Motion], weights: Tensors, gradients: Tensors, generators: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The gradients at g_m .. g_1 . w of those at w, if all motions are exact.

    Args:
        motions: applied in order.
        weights: w; may be empty if no motion but ``GroupMotion`` is among them.
        gradients: at w, by path.
        generators: one for each motion.
    """
    now, moved = dict(weights), dict(gradients)
    for motion, T in zip(motions, generators, strict=True):
        now = motion.weights(now, T)
        moved = motion.gradients(now, moved, T)
    return moved
