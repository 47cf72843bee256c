"""Random elements of the groups, and how weights and gradients move under them.

    positive scaling    g = diag(exp t),  t a vector,    ||t|| = norm
    general linear      g = exp(T),       T a matrix,    ||T||_F = norm
    permutation         g = P

Each comes with its inverse exactly (exp(T) and exp(-T)). A symmetry with blocks (heads) has one
generator of this norm for each. The draws of a symmetry depend on the seed and on its own name
alone, so that editing a list leaves the elements of the others as they are.
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
    """g, acting on stretches [outer, blocks, size, any]."""

    @property
    def squared(self) -> Element | None:
        """The element that acts on squares as this one does on what is squared; None if none."""
        return None

    @abstractmethod
    def act(self, x: Tensor) -> Tensor:
        """G x."""

    @abstractmethod
    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """G^-T x."""


class Diagonal(Element):
    """g = diag(exp t).

    Args:
        t: float64 [blocks, size].
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
    """g = exp(T), with exp(-T) for its inverse. Squares of entries mix: ``squared`` is None.

    Args:
        T: float64 [blocks, size, size].
        norm: the largest Frobenius norm in it.
    """

    def __init__(self, T: Tensor, norm: float) -> None:
        self.g, self.g_inv = Exponential(norm)(T)

    def act(self, x: Tensor) -> Tensor:
        """G x."""
        return self.g @ x

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """G^-T x."""
        return self.g_inv.mT @ x


class Relabelling(Element):
    """g = P, (P x)_i = x_{order_i}; P^-T = P, and squares are relabelled alike.

    Args:
        order: int64 [size].
    """

    def __init__(self, order: Tensor) -> None:
        self.order = order

    @property
    def squared(self) -> Element:
        """Itself."""
        return self

    def act(self, x: Tensor) -> Tensor:
        """P x."""
        return x.index_select(2, self.order.to(x.device))

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """P x."""
        return self.act(x)


def random_element(symmetry: Symmetry, norm: float, seed: int, device: torch.device) -> Element:
    """The element of a symmetry at a seed; that of -norm is its inverse.

    Args:
        symmetry: whose group it is.
        norm: of the generator of each block, with a sign; not 0.
        seed: non-negative.
        device: of what the element acts on.
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
    """What a teleport does to one stretch of one tensor.

    Attributes:
        slot: the stretch.
        symmetry: to which it belongs.
        element: of the symmetry's group.
        is_incoming: whether weights move by g; otherwise by g^-T.
    """

    slot: Slot
    symmetry: Symmetry
    element: Element
    is_incoming: bool

    def weights(self, tensor: Tensor) -> Tensor:
        """The weights after the teleport."""
        return self._moved(tensor, self.element, self.is_incoming)

    def gradients(self, tensor: Tensor) -> Tensor:
        """What is linear in gradients, by the inverse transpose of what moves the weights."""
        return self._moved(tensor, self.element, not self.is_incoming)

    def squares(self, tensor: Tensor) -> Tensor | None:
        """What is linear in squares of gradients, entry by entry; None where it is unknown."""
        squared = self.element.squared
        return None if squared is None else self._moved(tensor, squared, not self.is_incoming)

    def _moved(self, tensor: Tensor, element: Element, by_g: bool) -> Tensor:
        act = element.act if by_g else element.act_inversely_transposed
        return self.slot.apply(tensor, self.symmetry.blocks, self.symmetry.size, act)
