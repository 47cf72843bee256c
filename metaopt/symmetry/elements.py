"""Elements of the groups: how tensors move under them.

    general linear      g, and its inverse, matrices
    orthogonal          the same, with g^-T = g
    scale and rotation  g = exp(t I + u J), J a quarter turn
    positive scaling    g = diag(exp t)
    translation         x -> x + v
    sign flips          g = diag(+-1)
    permutation         g = P

An element goes with a copy to every device on which it finds a tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from metaopt.base.streams import Stream, generator
from metaopt.symmetry.groups import Group, Slot
from metaopt.symmetry.limits import FixedNorm


class Element(ABC):
    """A group element g that acts on tensors [copies, blocks, size, any], along their third axis.

    Args:
        tensors: what it is made of; ``_on`` gives them on the device of a tensor.

    Attributes:
        is_rounded: whether products are rounded, so that lower precisions are moved in float64.
    """

    is_rounded: ClassVar[bool] = True

    def __init__(self, *tensors: Tensor) -> None:
        self._made = tensors
        self._copies: dict[torch.device, tuple[Tensor, ...]] = {}

    def _on(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.device not in self._copies:
            self._copies[x.device] = tuple(tensor.to(x.device) for tensor in self._made)
        return self._copies[x.device]

    @property
    def squared(self) -> Element | None:
        """The element h with h x^2 = (g x)^2 for gradients x, squares taken entry by entry.

        None if none exists.
        """
        return None

    def at(self, slot: Slot) -> Element:
        """The element as it acts on the entries of a slot: g^power.

        Raises:
            ValueError: if the slot moves by a power that the group does not have.
        """
        if slot.power == 1:
            return self
        raise ValueError(
            f"{slot.path!r} moves by the power {slot.power} of a group element, which only "
            f"{Group.SCALING} and {Group.SIGNS} have"
        )

    @abstractmethod
    def act(self, x: Tensor) -> Tensor:
        """g x."""

    @abstractmethod
    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """g^-T x."""


class Identity(Element):
    """g = 1."""

    is_rounded = False

    @property
    def squared(self) -> Element:
        """The element itself."""
        return self

    def act(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """x."""
        return x


class Diagonal(Element):
    """g = diag(exp t): scales each hidden unit by a positive factor.

    Args:
        t: the logarithms of the factors, float64 [blocks, size].
    """

    def __init__(self, t: Tensor) -> None:
        super().__init__(t[..., None])

    @property
    def squared(self) -> Element:
        """diag(exp 2 t): (exp(t) x)^2 = exp(2 t) x^2."""
        return self._power(2)

    def at(self, slot: Slot) -> Element:
        """diag(exp(power t))."""
        return self if slot.power == 1 else self._power(slot.power)

    def _power(self, power: int) -> Element:
        (t,) = self._made
        return Diagonal(power * t[..., 0])

    def act(self, x: Tensor) -> Tensor:
        """exp(t) x."""
        (t,) = self._on(x)
        return t.exp() * x

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """exp(-t) x."""
        (t,) = self._on(x)
        return (-t).exp() * x


class Signs(Element):
    """g = diag(+-1); g^-T = g, and squares stay.

    Args:
        signs: 1 and -1, float64 [blocks, size].
    """

    is_rounded = False

    def __init__(self, signs: Tensor) -> None:
        super().__init__(signs[..., None])

    @property
    def squared(self) -> Element:
        """1."""
        return Identity()

    def at(self, slot: Slot) -> Element:
        """The element itself if the power is odd, else 1."""
        return self if slot.power % 2 else Identity()

    def act(self, x: Tensor) -> Tensor:
        """+-x."""
        (signs,) = self._on(x)
        return signs.to(x.dtype) * x

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """+-x."""
        return self.act(x)


class Matrix(Element):
    """g, with its inverse. It mixes entries, so that ``squared`` is None.

    Args:
        g: float64 [blocks, size, size].
        g_inv: its inverse.
    """

    def __init__(self, g: Tensor, g_inv: Tensor) -> None:
        super().__init__(g, g_inv)

    def act(self, x: Tensor) -> Tensor:
        """g x."""
        return self._on(x)[0] @ x

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """g^-T x."""
        return self._on(x)[1].mT @ x


class ScaledRotation(Element):
    """g = exp(t I + u J) = exp(t) (cos u I + sin u J), J = [[0, -1], [1, 0]].

    Its inverse transpose is exp(-t) (cos u I + sin u J).

    Args:
        t: the logarithms of the scales, float64 [blocks].
        u: the angles, float64 [blocks].
    """

    def __init__(self, t: Tensor, u: Tensor) -> None:
        super().__init__(t[:, None], u[:, None])

    def act(self, x: Tensor) -> Tensor:
        """exp(t I + u J) x."""
        t, u = self._on(x)
        return self._turned(t, u, x)

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """exp(-t I + u J) x."""
        t, u = self._on(x)
        return self._turned(-t, u, x)

    @staticmethod
    def _turned(t: Tensor, u: Tensor, x: Tensor) -> Tensor:
        along, across = t.exp() * u.cos(), t.exp() * u.sin()
        first, second = x.unbind(2)
        return torch.stack([along * first - across * second, across * first + along * second], 2)


class Relabelling(Element):
    """g = P, (P x)_i = x_{order_i}; P^-T = P, and squares are relabelled in the same way.

    Args:
        order: for each block a permutation of 0 .. size - 1, int64 [blocks, size].
    """

    is_rounded = False

    def __init__(self, order: Tensor) -> None:
        super().__init__(order)

    @property
    def squared(self) -> Element:
        """The element itself: squares are relabelled as the entries are."""
        return self

    def act(self, x: Tensor) -> Tensor:
        """P x."""
        (order,) = self._on(x)
        if len(order) == 1:
            return x.index_select(2, order[0])
        return x.gather(2, order[:, :, None].expand(x.shape))

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """P x."""
        return self.act(x)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a symmetry.

    Attributes:
        name: the name of its group and its own.
        seed: at least 0.
    """

    name: str
    seed: int

    def of(self, path: str = "") -> np.random.Generator:
        """A generator at the place of the symmetry, or of one of its tensors."""
        text = f"{self.name}: {path}" if path else self.name
        digest = blake2b(text.encode(), digest_size=7).digest()
        return generator(Stream.ELEMENTS, self.seed, int.from_bytes(digest, "big"))


class Translation(Element):
    """x -> x + v, v the same for all units of a block: [blocks, 1, any]. Gradients stay.

    The linear part is 1, so that ``act_inversely_transposed``, which moves gradients, does nothing.

    Args:
        blocks: the number of blocks.
        norm: the norm of v in each block, with a sign.
        draws: what the random numbers depend on, besides the path of the slot.
        path: the path of the slot's tensor, once it is known.
    """

    def __init__(self, blocks: int, norm: float, draws: Draws, path: str = "") -> None:
        super().__init__()
        self.blocks, self.norm, self.draws, self.path = blocks, norm, draws, path

    @property
    def squared(self) -> Element:
        """1: gradients stay, and so do their squares."""
        return Identity()

    def at(self, slot: Slot) -> Element:
        """The translation of this slot."""
        super().at(slot)
        return Translation(self.blocks, self.norm, self.draws, slot.path)

    def act(self, x: Tensor) -> Tensor:
        """x + v."""
        numbers = self.draws.of(self.path).standard_normal((self.blocks, 1, x.shape[-1]))
        v = math.copysign(1, self.norm) * FixedNorm(abs(self.norm))(torch.from_numpy(numbers))
        return x + v.to(x.device)

    def act_inversely_transposed(self, x: Tensor) -> Tensor:
        """x."""
        return x
