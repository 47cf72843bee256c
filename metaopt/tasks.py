"""Task families: what optimizees are sampled from, their loss and its exact gradient.

The default family is regression with a LeakyReLU network (arXiv 2305.13404, section 6.2):

    L(W) = 1/2 ||Y - f(W)||_F^2,   f(W) = W_L s(W_{L-1} ... s(W_1 X))
    grad_{W_l} L = delta_l A_{l-1}^T
    delta_L = f(W) - Y,   delta_l = (W_{l+1}^T delta_{l+1}) * s'(Z_l)

Tasks are drawn on the CPU in float64 by index (see ``streams``) and cast after that, so that a seed
names the same tasks in every dtype and on every device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from metaopt.network import Forward, LeakyReLU, Weights, forward, pseudo_inverse
from metaopt.schema_task import Distribution, TaskConfig
from metaopt.streams import Stream, uniforms
from metaopt.units import Units


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


def regression_loss(outputs: Tensor, Y: Tensor) -> Tensor:
    """1/2 ||Y - f||_F^2 for each task: [B, m, N] twice -> [B]."""
    return 0.5 * (outputs - Y).square().sum(dim=(-2, -1))


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


@dataclass(frozen=True)
class TaskBatch(Tasks):
    """B regression tasks side by side, with the weights that each trajectory starts from.

    Attributes:
        X: inputs [B, n, N].
        Y: targets [B, m, N].
        initial: W_l at step 0, each [B, out, in].
        s: the activation.
    """

    X: Tensor
    Y: Tensor
    initial: Weights
    s: LeakyReLU
    hides: Hidden = NOTHING

    @cached_property
    def units(self) -> Units:
        """Rows of W_l, read by columns of W_{l+1}."""
        shapes = [(W.shape[1], W.shape[2]) for W in self.initial]
        return Units.of_chain(shapes).to(self.X.device)

    @cached_property
    def X_pinv(self) -> Tensor:
        """X^+, [B, N, n]."""
        return pseudo_inverse(self.X)

    @cached_property
    def target_norm(self) -> Tensor:
        """||Y||_F, [B]."""
        return torch.linalg.matrix_norm(self.Y)

    def outputs(self, weights: Sequence[Tensor]) -> Tensor:
        """f(W), [B, m, N]."""
        return forward(weights, self.X, self.s).outputs

    def loss(self, weights: Sequence[Tensor]) -> Tensor:
        """L(W), [B]."""
        return regression_loss(self.outputs(weights), self.Y)

    def observe(self, weights: Weights) -> Observation:
        """Loss and exact gradient at ``weights``, differentiable (one gradient evaluation)."""
        passed = forward(weights, self.X, self.s)
        return Observation(
            weights=weights,
            grads=self._gradient(weights, passed),
            inputs=passed.inputs,
            loss=regression_loss(passed.outputs, self.Y),
            units=self.units,
        )

    def _gradient(self, weights: Weights, passed: Forward) -> Weights:
        delta = passed.outputs - self.Y
        grads = [torch.bmm(delta, passed.inputs[-1].mT)]
        for layer in range(len(weights) - 2, -1, -1):
            delta = torch.bmm(weights[layer + 1].mT, delta) * self.s.derivative(
                passed.preactivations[layer]
            )
            grads.append(torch.bmm(delta, passed.inputs[layer].mT))
        return tuple(reversed(grads))

    def repeated(self, times: int) -> TaskBatch:
        """Each task ``times`` times in a row."""
        if times == 1:
            return self
        X, Y, *initial = (
            tensor.repeat_interleave(times, dim=0) for tensor in (self.X, self.Y, *self.initial)
        )
        return replace(self, X=X, Y=Y, initial=tuple(initial))

    def select(self, index: slice) -> TaskBatch:
        """The tasks of a slice of the batch."""
        initial = tuple(W[index] for W in self.initial)
        return replace(self, X=self.X[index], Y=self.Y[index], initial=initial)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> TaskBatch:
        """The same tasks elsewhere, or in another precision."""
        X, Y, *initial = (tensor.to(device, dtype) for tensor in (self.X, self.Y, *self.initial))
        return replace(self, X=X, Y=Y, initial=tuple(initial))


def layer_shapes(task: TaskConfig) -> tuple[tuple[int, int], ...]:
    """(out, in) of each layer of the network that a task configuration describes."""
    sizes = [task.inputs, *[task.width] * (task.layers - 1), task.outputs]
    return tuple((sizes[i + 1], sizes[i]) for i in range(task.layers))


def _distribute(u: Tensor, distribution: Distribution) -> Tensor:
    """Uniforms on [0, 1) as they are, or through the inverse normal distribution function."""
    match distribution:
        case "uniform":
            return u
        case "gaussian":
            return torch.special.ndtri(u.clamp(min=math.ldexp(1.0, -54)))


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


@dataclass(frozen=True)
class RegressionFamily(TaskFamily[TaskBatch]):
    """Regression tasks with shapes and distributions of a ``TaskConfig``.

    Uniform draws are on [0, 1), as in the paper. Gaussian draws are standard normal for data; for
    weights they have variance 1 / fan_in.
    """

    config: TaskConfig

    def drawn(self, stream: Stream, seed: int, start: int, count: int) -> TaskBatch:
        """Data and initial weights of each task from one row of the stream."""
        task = self.config
        shapes = [
            (task.inputs, task.samples),
            (task.outputs, task.samples),
            *layer_shapes(task),
        ]
        sizes = [rows * columns for rows, columns in shapes]
        draws = torch.from_numpy(uniforms(stream, seed, start, count, sum(sizes)))
        parts = [
            part.reshape(count, *shape)
            for part, shape in zip(draws.split(sizes, dim=1), shapes, strict=True)
        ]
        X, Y = (_distribute(part, task.data) for part in parts[:2])
        weights = [_distribute(part, task.weights) for part in parts[2:]]
        if task.weights == "gaussian":
            weights = [W / math.sqrt(W.shape[-1]) for W in weights]
        return TaskBatch(X, Y, tuple(weights), LeakyReLU(task.slope))
