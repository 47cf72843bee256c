"""The default task family: regression with a LeakyReLU network (arXiv 2305.13404, section 6.2).

    L(W) = 1/2 ||Y - f(W)||_F^2,   f(W) = W_L s(W_{L-1} ... s(W_1 X))
    grad_{W_l} L = delta_l A_{l-1}^T
    delta_L = f(W) - Y,   delta_l = (W_{l+1}^T delta_{l+1}) * s'(Z_l)

Z_l = W_l A_{l-1} are the pre-activations, A_l = s(Z_l) the activations, A_0 = X.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from metaopt.base.network import Forward, LeakyReLU, Weights, forward, pseudo_inverse
from metaopt.base.streams import Stream, uniforms
from metaopt.symmetry.units import HiddenUnits
from metaopt.tasks.base import NOTHING, Hidden, Observation, TaskFamily, Tasks
from metaopt.tasks.config import Distribution, TaskConfig


def regression_loss(outputs: Tensor, Y: Tensor) -> Tensor:
    """1/2 ||Y - f||_F^2 for each task: outputs f and targets Y [B, m, N] -> [B]."""
    return 0.5 * (outputs - Y).square().sum(dim=(-2, -1))


@dataclass(frozen=True)
class TaskBatch(Tasks):
    """B regression tasks side by side, L(W) = 1/2 ||Y - f(W)||_F^2.

    Attributes:
        X: the inputs, [B, n, N].
        Y: the targets, [B, m, N].
        initial: the weights that each trajectory starts from, W_l [B, out, in].
        s: the activation between layers.
    """

    X: Tensor
    Y: Tensor
    initial: Weights
    s: LeakyReLU
    hides: Hidden = NOTHING
    horizon: int | None = None

    @property
    def network(self) -> TaskBatch:
        """The tasks themselves: network, data and targets are all known."""
        return self

    @cached_property
    def units(self) -> HiddenUnits:
        """The hidden units: row i of W_l makes unit i, column i of W_{l+1} reads it."""
        shapes = [(W.shape[1], W.shape[2]) for W in self.initial]
        return HiddenUnits.of_chain(shapes).to(self.X.device)

    @cached_property
    def X_pinv(self) -> Tensor:
        """The pseudo-inverse X^+, [B, N, n]."""
        return pseudo_inverse(self.X)

    @cached_property
    def target_norm(self) -> Tensor:
        """||Y||_F, [B]."""
        return torch.linalg.matrix_norm(self.Y)

    def data(self, inverse: bool) -> dict[str, Tensor]:
        """What inner steps read of the tasks, by name: X, Y, ||Y||_F and, if asked for, X^+."""
        names = ("X", "Y", "target_norm", *(["X_pinv"] if inverse else []))
        return {name: getattr(self, name) for name in names}

    def with_data(self, data: Mapping[str, Tensor], initial: Weights | None = None) -> TaskBatch:
        """The same tasks on other tensors: ``data`` of tasks of the same shapes.

        Args:
            data: with what is computed of X and Y, which a graph of operations may not hold.
            initial: where trajectories start, if not where they do.
        """
        initial = self.initial if initial is None else initial
        tasks = replace(self, X=data["X"], Y=data["Y"], initial=initial)
        computed = {name: tensor for name, tensor in data.items() if name not in ("X", "Y")}
        vars(tasks).update(computed, units=self.units)
        return tasks

    def outputs(self, weights: Sequence[Tensor]) -> Tensor:
        """f(W), [B, m, N]."""
        return forward(weights, self.X, self.s).outputs

    def loss(self, weights: Sequence[Tensor]) -> Tensor:
        """L(W), [B]."""
        return regression_loss(self.outputs(weights), self.Y)

    def observe(self, weights: Weights, passed: Forward | None = None) -> Observation:
        """Loss and exact gradient at ``weights``, differentiable: one gradient evaluation."""
        if passed is None:
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
        """The same tasks on another device or in another dtype."""
        X, Y, *initial = (tensor.to(device, dtype) for tensor in (self.X, self.Y, *self.initial))
        return replace(self, X=X, Y=Y, initial=tuple(initial))


def layer_shapes(task: TaskConfig) -> tuple[tuple[int, int], ...]:
    """(out, in) of each layer of the network that the section ``task`` describes."""
    sizes = [task.inputs, *[task.width] * (task.layers - 1), task.outputs]
    return tuple((sizes[i + 1], sizes[i]) for i in range(task.layers))


def _distribute(u: Tensor, distribution: Distribution) -> Tensor:
    """Uniform numbers u on [0, 1) as they are, or made standard normal."""
    match distribution:
        case "uniform":
            return u
        case "gaussian":
            return torch.special.ndtri(u.clamp(min=math.ldexp(1.0, -54)))


@dataclass(frozen=True)
class RegressionFamily(TaskFamily[TaskBatch]):
    """Regression tasks with the shapes and distributions of a ``TaskConfig``.

    Uniform draws are on [0, 1), as in the paper. Gaussian data are standard normal; Gaussian
    weights have variance 1 / in.

    Args:
        config: the section ``task`` of a configuration.
    """

    config: TaskConfig

    def drawn(self, stream: Stream, seed: int, start: int, count: int) -> TaskBatch:
        """Tasks ``start`` .. ``start + count - 1``: each from one row of the stream, in float64."""
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
