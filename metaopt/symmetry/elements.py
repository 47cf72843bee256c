"""Random elements of the groups, and how weights and gradients move under them.

    positive scaling    g = diag(exp t),  t a vector,    ||t|| = norm
    general linear      g = exp(T),       T a matrix,    ||T||_F = norm
    permutation         g = P

Each element comes with its exact inverse, exp(-T) for exp(T). A symmetry with several blocks
(heads) has one generator of this norm for each block. The random numbers of a symmetry depend only
on the seed and on its own name: if you edit a list of symmetries, the elements of the others stay.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from metaopt.base.streams import Stream, generator
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.limits import FixedNorm
from metaopt.symmetry.maps import Exponential


class Element(ABC):
    """A group element g that acts on tensors [outer, blocks, size, any], along their third axis."""

    @property
    def squared(self) -> Element | None:
        """The element h with h x^2 = (g x)^2, squares taken entry by entry; None if none exists."""
        return None

    @abstractmethod
    def act(self, x: Tensor) -> Tensor:
        """g x."""

    @abstractmethod
    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """g^-T x."""


class Diagonal(Element):
    """g = diag(exp t): scales each hidden unit by a positive factor.

    Args:
        t: the logarithms of the factors, float64 [blocks, size].
    """

    def __init__(self, t: Tensor) -> None:
        self.t = t[..., None]

    @property
    def squared(self) -> Element:
        """diag(exp 2 t): (exp(t) x)^2 = exp(2 t) x^2."""
        return Diagonal(2 * self.t[..., 0])

    def act(self, x: Tensor) -> Tensor:
        """exp(t) x."""
        return self.t.exp() * x

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """exp(-t) x."""
        return (-self.t).exp() * x


class Matrix(Element):
    """g = exp(T), with inverse exp(-T). It mixes entries, so that ``squared`` is None.

    Args:
        T: the generators, float64 [blocks, size, size].
        norm: the largest of their Frobenius norms.
    """

    def __init__(self, T: Tensor, norm: float) -> None:
        self.g, self.g_inv = Exponential(norm)(T)

    def act(self, x: Tensor) -> Tensor:
        """exp(T) x."""
        return self.g @ x

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """exp(-T)^T x."""
        return self.g_inv.mT @ x


class Relabelling(Element):
    """g = P, (P x)_i = x_{order_i}; P^-T = P, and squares are relabelled in the same way.

    Args:
        order: a permutation of 0 .. size - 1, int64 [size].
    """

    def __init__(self, order: Tensor) -> None:
        self.order = order

    @property
    def squared(self) -> Element:
        """The element itself: squares are relabelled as the entries are."""
        return self

    def act(self, x: Tensor) -> Tensor:
        """P x."""
        return x.index_select(2, self.order.to(x.device))

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """P x."""
        return self.act(x)


def random_element(symmetry: Symmetry, norm: float, seed: int, device: torch.device) -> Element:
    """A random element of a symmetry's group; with ``-norm`` the inverse of that with ``norm``.

    Args:
        symmetry: the symmetry.
        norm: the norm of the generator of each block, with a sign; not 0.
        seed: at least 0.
        device: the device of the tensors that the element will act on.
    """
    digest = blake2b(f"{symmetry.group}: {symmetry.name}".encode(), digest_size=7).digest()
    draws = generator(Stream.ELEMENTS, seed, int.from_bytes(digest, "big"))
    blocks, size = symmetry.blocks, symmetry.size
    if symmetry.group is Group.PERMUTATION:
        order = torch.from_numpy(draws.permutation(size))
        return Relabelling(order if norm > 0 else order.argsort())
    shape = (1, size) if symmetry.group is Group.SCALING else (size, size)
    T = torch.from_numpy(draws.standard_normal((blocks, *shape))).to(device)
    T = math.copysign(1, norm) * FixedNorm(abs(norm))(T)
    return Diagonal(T[:, 0]) if symmetry.group is Group.SCALING else Matrix(T, abs(norm))


@dataclass(frozen=True)
class Touch:
    """What a teleport does to one slot of one tensor.

    Attributes:
        slot: the slot.
        symmetry: the symmetry that the slot belongs to.
        element: the element of the symmetry's group.
        is_incoming: whether the weights in the slot move by g; otherwise they move by g^-T.
    """

    slot: Slot
    symmetry: Symmetry
    element: Element
    is_incoming: bool

    def weights(self, tensor: Tensor) -> Tensor:
        """The weights after the teleport."""
        return self._moved(tensor, self.element, self.is_incoming)

    def gradients(self, tensor: Tensor) -> Tensor:
        """A tensor that is linear in gradients, moved as they are, by the inverse transpose."""
        return self._moved(tensor, self.element, not self.is_incoming)

    def squares(self, tensor: Tensor) -> Tensor | None:
        """A tensor linear in squares of gradient entries, moved as they are; None if unknown."""
        squared = self.element.squared
        return None if squared is None else self._moved(tensor, squared, not self.is_incoming)

    def _moved(self, tensor: Tensor, element: Element, by_g: bool) -> Tensor:
        act = element.act if by_g else element.act_inversely_transposed
        return self.slot.apply(tensor, self.symmetry.blocks, self.symmetry.size, act)
