"""What every task family offers: tasks that are drawn by index, and observations of them.

Tasks are drawn on the CPU in float64 by index (see ``streams``) and cast after that, so that a seed
names the same tasks in every dtype and on every device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.base.streams import Stream
from metaopt.symmetry.units import Units


@dataclass(frozen=True)
class Observation:
    """What an optimizer may see of a task at the current weights: one gradient evaluation.

    Attributes:
        weights: W_l, each [B, out, in].
        grads: grad_{W_l} L, of the same shapes.
        inputs: the layer inputs A_0 .. A_{L-1}, each [B, n_l, N].
        loss: [B], or None where the caller does not know it.
        units: the hidden units that may be scaled, or None where they are not known.
    """

    weights: Weights
    grads: Weights
    inputs: tuple[Tensor, ...]
    loss: Tensor | None
    units: Units | None = None

    def detach(self) -> Observation:
        """The same observation as a constant."""
        return Observation(
            weights=cut(self.weights),
            grads=cut(self.grads),
            inputs=cut(self.inputs),
            loss=None if self.loss is None else self.loss.detach(),
            units=self.units,
        )


Hidden = frozenset[str]
"""Names of fields of ``Observation``, of ``loss`` and ``inputs``."""


NOTHING: Hidden = frozenset()


def cut(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors without their graph."""
    return tuple(tensor.detach() for tensor in tensors)


class Tasks(ABC):
    """B tasks side by side: all that the inner loop, and optimizers without teleports, ask of them.

    Attributes:
        initial: the weights that each trajectory starts from, each [B, out, in].
        hides: what the rules are not shown of them (``augment.Hiding``).
    """

    initial: Weights
    hides: Hidden = NOTHING

    @property
    def size(self) -> int:
        """B."""
        return self.initial[0].shape[0]

    def at(self, step: int) -> Self:
        """The tasks as inner step ``step`` observes them: with its mini-batch, where there is one.

        Equal steps of equal tasks give equal bits, whatever came before.
        """
        return self

    @abstractmethod
    def observe(self, weights: Weights) -> Observation:
        """Loss and exact gradient at ``weights``, differentiable (one gradient evaluation)."""

    @abstractmethod
    def loss(self, weights: Weights) -> Tensor:
        """L(w) on all data, [B]."""

    def hiding(self, hides: Hidden) -> Self:
        """The same tasks, with that hidden from the rules."""
        return replace(self, hides=hides) if hides != self.hides else self  # type: ignore[type-var]

    def shown(self, observation: Observation) -> Observation:
        """What the rules are shown of an observation: all but what is hidden from them."""
        return replace(
            observation,
            loss=None if "loss" in self.hides else observation.loss,
            inputs=() if "inputs" in self.hides else observation.inputs,
        )

    @property
    def units(self) -> Units | None:
        """The hidden units that may be scaled, or None where they are not known."""
        return None

    def seen_loss(self, weights: Weights) -> Tensor:
        """L(w), [B], on the data at hand."""
        return self.loss(weights)

    def judged(self, weights: Weights, observed: Tensor) -> Tensor:
        """What validation and evaluation report of ``weights``, [B]; differentiable.

        Args:
            weights: w.
            observed: L(w) as it was observed there.
        """
        return observed

    @abstractmethod
    def repeated(self, times: int) -> Self:
        """Each task ``times`` times in a row."""

    @abstractmethod
    def select(self, index: slice) -> Self:
        """The tasks of a slice of the batch."""

    @abstractmethod
    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """The same tasks elsewhere, or in another precision."""


T = TypeVar("T", bound=Tasks)


class TaskFamily(ABC, Generic[T]):
    """What tasks are drawn from, by their index in a stream."""

    def sample(
        self,
        stream: Stream,
        seed: int,
        start: int,
        count: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> T:
        """Tasks ``start`` .. ``start + count - 1`` of a stream.

        Returns them side by side, B = count. Equal arguments give equal bits.
        """
        return self.drawn(stream, seed, start, count).to(device, dtype)

    @abstractmethod
    def drawn(self, stream: Stream, seed: int, start: int, count: int) -> T:
        """These tasks on the CPU, as they are drawn: in float64, those of this package."""
