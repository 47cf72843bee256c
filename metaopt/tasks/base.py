"""What every task family offers: tasks that are drawn by index, and observations of them.

Tasks are drawn on the CPU in float64 by index (see ``streams``) and cast after that, so that a seed
names the same tasks in every dtype and on every device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from metaopt.base.network import Forward, LeakyReLU, Weights
from metaopt.base.streams import Stream
from metaopt.symmetry.units import HiddenUnits


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
    units: HiddenUnits | None = None

    def detach(self) -> Observation:
        """The same observation as a constant."""
        return Observation(
            weights=cut(self.weights),
            grads=cut(self.grads),
            inputs=cut(self.inputs),
            loss=None if self.loss is None else self.loss.detach(),
            units=self.units,
        )


def observed_loss(observation: Observation) -> Tensor:
    """The loss of an observation that tasks made of themselves, [B]: there it is always known."""
    assert observation.loss is not None
    return observation.loss


Hidden = frozenset[str]
"""Names of fields of ``Observation``, of ``loss`` and ``inputs``."""


NOTHING: Hidden = frozenset()


def cut(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors without their graph."""
    return tuple(tensor.detach() for tensor in tensors)


class KnownNetwork(Protocol):
    """A chain of layers and the data that it is trained on: what actions are carried through."""

    @property
    def s(self) -> LeakyReLU:
        """The activation of the network."""

    @property
    def X(self) -> Tensor:
        """Inputs of the network, [B, n, N]."""

    @property
    def X_pinv(self) -> Tensor:
        """X^+, [B, N, n]; read by actions that need data only."""

    @property
    def target_norm(self) -> Tensor:
        """||Y||_F, [B]; zeros where the targets are unknown."""


class KnownRegression(KnownNetwork, Protocol):
    """The same with its targets, where the loss is 1/2 ||Y - f(w)||_F^2."""

    @property
    def Y(self) -> Tensor:
        """Targets, [B, m, N]."""


class Ground(Protocol):
    """What engines move weights on: what is known of the network, and its hidden units."""

    @property
    def network(self) -> KnownNetwork | None:
        """The network and its data, or None where they are not known."""

    @property
    def units(self) -> HiddenUnits | None:
        """The hidden units that may be scaled, or None where they are not known."""


class Problem(Protocol):
    """All that a step is given beside weights, observation and state; ``Tasks`` are one.

    It is that of one inner step: with its mini-batch, where there is one.
    """

    @property
    def network(self) -> KnownRegression | None:
        """The network, its data and targets, or None where a family keeps them to itself."""

    @property
    def units(self) -> HiddenUnits | None:
        """The hidden units that may be scaled, or None where they are not known."""

    def observe(self, weights: Weights) -> Observation:
        """Loss and exact gradient at other weights (one more gradient evaluation)."""

    def seen_loss(self, weights: Weights) -> Tensor:
        """L(w), [B], on the data at hand."""


class Tasks(ABC):
    """B tasks side by side: all that the inner loop and optimizers ask of them.

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
    def observe(self, weights: Weights, passed: Forward | None = None) -> Observation:
        """Loss and exact gradient at ``weights``, differentiable (one gradient evaluation).

        Args:
            weights: w.
            passed: the forward pass at w, where a teleport has made it; made here otherwise.
        """

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
    def network(self) -> KnownRegression | None:
        """The network, its data and targets, or None where a family keeps them to itself."""
        return None

    @property
    def units(self) -> HiddenUnits | None:
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
