"""What every task family offers: tasks drawn by index, and observations of them.

Tasks are drawn on the CPU in float64 by index (see ``base.streams``) and then moved to the device
and dtype that are asked for, so that a seed names the same tasks in every dtype and on every
device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from metaopt.base.network import Forward, LeakyReLU, Weights
from metaopt.base.streams import Stream
from metaopt.symmetry.pairs import LinearPairs
from metaopt.symmetry.units import HiddenUnits


@dataclass(frozen=True)
class Observation:
    """What an optimizer may see of B tasks at the current weights: one gradient evaluation.

        grad_{W_l} L(W),   A_l = s(W_l A_{l-1}),   A_0 = X

    Attributes:
        weights: W_1 .. W_L, each [B, out, in].
        grads: grad_{W_l} L, of the same shapes.
        inputs: the inputs A_0 .. A_{L-1} of the layers, each [B, n_l, N]; empty if not known.
        loss: L(W), [B], or None if the caller does not know it.
        units: the hidden units that may be scaled, or None if they are not known.
        pairs: the linear pairs, or None if they are not known.
        left: the share of the steps of training that is left, in (0, 1], [B]; None if nobody says
            how many there will be.
    """

    weights: Weights
    grads: Weights
    inputs: tuple[Tensor, ...]
    loss: Tensor | None
    units: HiddenUnits | None = None
    pairs: LinearPairs | None = None
    left: Tensor | None = None

    def detach(self) -> Observation:
        """The same observation with all tensors cut from the autograd graph."""
        return Observation(
            weights=cut(self.weights),
            grads=cut(self.grads),
            inputs=cut(self.inputs),
            loss=None if self.loss is None else self.loss.detach(),
            units=self.units,
            pairs=self.pairs,
            left=self.left,
        )


def observed_loss(observation: Observation) -> Tensor:
    """The loss [B] of an observation that tasks made themselves, which always has one."""
    assert observation.loss is not None
    return observation.loss


def share_left(like: Tensor, step: int, horizon: int | None) -> Tensor | None:
    """max(1 - step / horizon, 0) for each of B trajectories, [B]; None without a horizon.

    Args:
        like: fixes B, dtype and device.
        step: the number of steps taken.
        horizon: the steps that there will be.
    """
    return None if horizon is None else like.new_full(like.shape[:1], max(1 - step / horizon, 0.0))


Hidden = frozenset[str]
"""The names of fields of ``Observation`` not shown to rules: ``loss``, ``inputs``, ``left``."""


NOTHING: Hidden = frozenset()
SIDE_BY_SIDE = 256
"""Tasks that a CPU evaluates at a time: more are no faster, and take as much more memory."""


def cut(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same tensors, cut from the autograd graph."""
    return tuple(tensor.detach() for tensor in tensors)


class KnownNetwork(Protocol):
    """A chain of dense layers and the data it is trained on: what actions through the data need."""

    @property
    def s(self) -> LeakyReLU:
        """The activation between the layers."""

    @property
    def X(self) -> Tensor:
        """The inputs of the network, [B, n, N]."""

    @property
    def X_pinv(self) -> Tensor:
        """The pseudo-inverse X^+, [B, N, n]; read only by actions that need data."""

    @property
    def target_norm(self) -> Tensor:
        """||Y||_F, [B]; zeros if the targets are unknown."""


class KnownRegression(KnownNetwork, Protocol):
    """A known network with targets Y, trained on the loss 1/2 ||Y - f(w)||_F^2."""

    @property
    def Y(self) -> Tensor:
        """The targets, [B, m, N]."""


class Ground(Protocol):
    """What a teleport engine may know of the network whose weights it moves."""

    @property
    def network(self) -> KnownNetwork | None:
        """The network and its data, or None if they are not known."""

    @property
    def units(self) -> HiddenUnits | None:
        """The hidden units that may be scaled, or None if they are not known."""

    @property
    def pairs(self) -> LinearPairs | None:
        """The linear pairs, or None if they are not known."""


class Problem(Protocol):
    """What one inner step is given besides weights, observation and state. ``Tasks`` is one.

    If the tasks have mini-batches, a problem is the tasks with the mini-batch of its inner step.
    """

    @property
    def network(self) -> KnownRegression | None:
        """The network with its data and targets, or None if the family does not expose them."""

    @property
    def units(self) -> HiddenUnits | None:
        """The hidden units that may be scaled, or None if they are not known."""

    @property
    def pairs(self) -> LinearPairs | None:
        """The linear pairs, or None if they are not known."""

    def observe(self, weights: Weights) -> Observation:
        """Loss and exact gradient at other weights; costs one more gradient evaluation."""

    def seen_loss(self, weights: Weights) -> Tensor:
        """L(w), [B], on the mini-batch of the step, or on all data if there are no mini-batches."""


class Tasks(ABC):
    """B tasks side by side: everything that the inner loop and optimizers ask of tasks.

    Attributes:
        initial: the weights that each trajectory starts from, each [B, out, in].
        hides: the fields of observations that rules are not shown (``tasks.variations.Hiding``).
        horizon: the steps that trajectories will have, or None where rules are not told.
    """

    initial: Weights
    hides: Hidden = NOTHING
    horizon: int | None = None

    @property
    def size(self) -> int:
        """B, the number of tasks."""
        return self.initial[0].shape[0]

    def at(self, step: int) -> Self:
        """The tasks as inner step ``step`` sees them: with its mini-batch, if there are any.

        The same step of the same tasks gives the same bits, whichever steps were asked for before.
        """
        return self

    @abstractmethod
    def observe(self, weights: Weights, passed: Forward | None = None) -> Observation:
        """Loss and exact gradient at ``weights``, differentiable: one gradient evaluation.

        Args:
            weights: w, each [B, out, in].
            passed: the forward pass at w, if a teleport has already made it; otherwise it is made
                here.
        """

    @abstractmethod
    def loss(self, weights: Weights) -> Tensor:
        """L(w) on all data, [B]."""

    def hiding(self, hides: Hidden) -> Self:
        """The same tasks, with these fields of observations hidden from the rules."""
        return replace(self, hides=hides) if hides != self.hides else self  # type: ignore[type-var]

    def until(self, horizon: int) -> Self:
        """The same tasks, with a horizon that rules are told unless it is hidden."""
        return replace(self, horizon=horizon)  # type: ignore[type-var]

    def shown(self, observation: Observation, step: int) -> Observation:
        """The observation as the rules see it, without the fields that are hidden from them.

        Args:
            observation: at the weights before inner step ``step``, counted from 0.
            step: the number of steps taken.
        """
        told = "left" not in self.hides
        return replace(
            observation,
            left=share_left(observation.weights[0], step, self.horizon if told else None),
            loss=None if "loss" in self.hides else observation.loss,
            inputs=() if "inputs" in self.hides else observation.inputs,
        )

    @property
    def network(self) -> KnownRegression | None:
        """The network with its data and targets, or None if the family does not expose them."""
        return None

    @property
    def units(self) -> HiddenUnits | None:
        """The hidden units that may be scaled, or None if they are not known."""
        return None

    @property
    def pairs(self) -> LinearPairs | None:
        """The linear pairs, or None if they are not known."""
        return None

    def seen_loss(self, weights: Weights) -> Tensor:
        """L(w), [B], on the mini-batch of the step, or on all data if there are no mini-batches."""
        return self.loss(weights)

    def judged(self, weights: Weights, observed: Tensor | None) -> Tensor:
        """The loss that validation and evaluation report for ``weights``, [B]; differentiable.

        Args:
            weights: w, each [B, out, in].
            observed: the loss L(w) that was observed at w, [B]; None if nobody looked there.
        """
        return self.loss(weights) if observed is None else observed

    @abstractmethod
    def repeated(self, times: int) -> Self:
        """Each task ``times`` times in a row: B grows by that factor."""

    @abstractmethod
    def select(self, index: slice) -> Self:
        """The tasks in a slice of the batch."""

    def in_parts(self, most: int | None = None) -> list[Self]:
        """The tasks in order, in equal parts, up to one task; themselves where all fit.

        Args:
            most: the tasks of a part; None for ``SIDE_BY_SIDE`` on a CPU, and all on a device whose
                kernels take longer to launch than to run.
        """
        if most is None:
            most = SIDE_BY_SIDE if self.initial[0].device.type == "cpu" else self.size
        count = -(-self.size // most)
        if count == 1:
            return [self]
        ends = [self.size * i // count for i in range(count + 1)]
        return [self.select(slice(*ends[i : i + 2])) for i in range(count)]

    @abstractmethod
    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """The same tasks on another device or in another dtype."""


T = TypeVar("T", bound=Tasks)


class TaskFamily(ABC, Generic[T]):
    """What tasks are drawn from. A task is named by its index in a random stream."""

    @property
    def no_units(self) -> str:
        """What a configuration that scales hidden units has to change if its tasks know none."""
        return "leave rules.teleport out"

    def sample(
        self,
        stream: Stream,
        seed: int,
        start: int,
        count: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> T:
        """Tasks ``start`` .. ``start + count - 1`` of a stream, side by side, so that B = count.

        Equal arguments give equal bits.

        Args:
            stream: what the tasks are for: training, validation or test.
            seed: the seed of the stream, at least 0.
            start: the index of the first task.
            count: the number of tasks.
            dtype: the dtype of floating point tensors.
            device: where the tensors are put.
        """
        return self.drawn(stream, seed, start, count).to(device, dtype)

    @abstractmethod
    def drawn(self, stream: Stream, seed: int, start: int, count: int) -> T:
        """The same tasks as they are drawn: on the CPU, in float64 for this package's families."""
