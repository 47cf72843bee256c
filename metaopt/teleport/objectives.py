"""What a teleport searches for on an orbit: functions of the weights, or of generators alone.

    gradient_norm   |grad L|^2
    sharpness       E L(w + r d) - L(w), d isotropic
    curvature       kappa of exp(t T) w
    a callable      (model) -> a scalar

Where all motions are exact, gradients at g . w follow from those at w, so that the first is a
function of the generators in closed form: no pass through the model is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from metaopt.landscape.samples import Samples, require_finite
from metaopt.symmetry.motion import GroupMotion, Motion, Tensors, moved_weights
from metaopt.teleport.closed_form import SquaredNorm
from metaopt.teleport.drift import called
from metaopt.teleport.search import Evaluate, Generators

OfModel = Callable[[nn.Module], Tensor]
"""A function of a model, a scalar, differentiable in its parameters."""


class Objective(ABC):
    """A function of the weights, a scalar.

    Attributes:
        name: what it is called.
    """

    name: str

    @abstractmethod
    def at(self, values: Tensors) -> Tensor:
        """The value at some weights, differentiable in them.

        Args:
            values: all parameters and buffers of the model, by path.
        """

    def along(self, motions: Sequence[Motion], values: Tensors) -> Evaluate:
        """The value at g(T) . w as a function of T, with its gradient, one candidate at a time.

        Args:
            motions: applied in order.
            values: w.
        """

        def evaluate(generators: Generators) -> tuple[Tensor, Generators]:
            found = [self._one(motions, values, one) for one in zip(*generators, strict=True)]
            return (
                torch.stack([value for value, _ in found]),
                tuple(torch.stack(of_one) for of_one in zip(*(G for _, G in found), strict=True)),
            )

        return evaluate

    def _one(
        self, motions: Sequence[Motion], values: Tensors, generators: Sequence[Tensor]
    ) -> tuple[Tensor, Generators]:
        leaves = [T.detach().requires_grad_() for T in generators]
        with torch.enable_grad():
            value = self.at(moved_weights(motions, values, leaves))
            if not value.requires_grad:
                raise ValueError(
                    f"objective {self.name!r} does not depend on the weights that move, or not by "
                    f"operations that torch can differentiate"
                )
            found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        return value.detach().double().cpu(), found


class GradientNorm(Objective):
    """|grad L|^2 by all parameters that require gradients.

    Args:
        model: the model.
        samples: model, loss and data; None: the gradients that the parameters hold are taken, and
            nothing is computed.

    Attributes:
        passes: how often the gradient over the data was computed.
    """

    name = "gradient_norm"

    def __init__(self, model: nn.Module, samples: Samples | None) -> None:
        self._model, self._samples = model, samples
        self.passes = 0

    def at(self, values: Tensors) -> Tensor:
        """|grad L|^2, with a graph."""
        samples = self._samples
        if samples is None:
            raise ValueError(
                "gradients after a move that reads data do not follow from those before it: give "
                "loss and data"
            )
        learned = {path for path, p in self._model.named_parameters() if p.requires_grad}
        here = _independent(values, learned)
        gradients: dict[str, Tensor] = {}
        paths = [path for path in here if path in learned]
        for inputs, targets in samples.batches():
            self.passes += 1
            outputs = called(samples.model, here, inputs)
            loss = samples.loss(outputs, targets)
            found = torch.autograd.grad(
                loss,
                [here[path] for path in paths],
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            share = len(targets) / samples.count
            for path, gradient in zip(paths, found, strict=True):
                gradients[path] = gradients.get(path, 0) + share * gradient
        totals = [gradient.double().square().sum() for gradient in gradients.values()]
        return torch.stack(totals).sum()

    def gradient(self) -> dict[str, Tensor]:
        """grad L at the model's weights, by path, float64: one pass over the data.

        Raises:
            ValueError: if no data are given and no parameter holds a gradient, or one is not
                finite.
        """
        learned = [path for path, p in self._model.named_parameters() if p.requires_grad]
        if self._samples is not None:
            self.passes += 1
            found: Mapping[str, Tensor] = self._samples.mean_gradient(learned)
        else:
            held = dict(self._model.named_parameters())
            gradients = {path: held[path].grad for path in learned}
            found = {path: G.detach() for path, G in gradients.items() if G is not None}
            if not found:
                raise ValueError(
                    "objective 'gradient_norm' needs gradients: give loss and data, or call "
                    "backward() first"
                )
            require_finite(found.values())
        return {path: G.double() for path, G in found.items()}

    def along(self, motions: Sequence[Motion], values: Tensors) -> Evaluate:
        """In closed form where all motions are exact: |J^-T grad L|^2, from one gradient."""
        if not all(motion.is_exact for motion in motions):
            return super().along(motions, values)
        wide: dict[str, Tensor] = {}
        if not all(isinstance(motion, GroupMotion) for motion in motions):
            wide = {p: v.double() for p, v in values.items() if v.is_floating_point()}
        squared = SquaredNorm(motions, wide, self.gradient())
        together = vmap(grad_and_value(squared, argnums=tuple(range(len(motions)))))

        def evaluate(generators: Generators) -> tuple[Tensor, Generators]:
            if len(generators[0]) == 1:
                # Without the overhead of vmap.
                leaves = tuple(T[0].detach().requires_grad_() for T in generators)
                with torch.enable_grad():
                    value = squared(*leaves)
                    found = torch.autograd.grad(
                        value, leaves, allow_unused=True, materialize_grads=True
                    )
                return value.detach()[None].cpu(), tuple(G[None] for G in found)
            gradients, values = together(*generators)
            return values.detach().cpu(), tuple(G.detach() for G in gradients)

        return evaluate


class Own(Objective):
    """A function of the model of one's own.

    Args:
        model: the model.
        function: model -> a scalar.
    """

    def __init__(self, model: nn.Module, function: OfModel) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self._within = _Within(model, function)
        self._learned = {path for path, p in model.named_parameters() if p.requires_grad}

    def at(self, values: Tensors) -> Tensor:
        """The function's value, with a graph."""
        here = _independent(values, self._learned)
        given = {f"model.{path}": value for path, value in here.items()}
        value = functional_call(self._within, given, ())
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"objective {self.name!r} must give a scalar tensor, found {found}")
        return value.reshape(())


def _independent(values: Tensors, learned: set[str]) -> dict[str, Tensor]:
    """Weights to differentiate by: each is a tensor of its own, from which no other is computed.

    A move may compute one weight from another that has moved. Copies keep a gradient by the second
    from counting what it does to the first.
    """
    return {
        path: value.clone()
        if value.requires_grad
        else value.detach().requires_grad_(path in learned)
        for path, value in values.items()
    }


class _Within(nn.Module):
    """A module whose forward pass is a function of another module."""

    def __init__(self, model: nn.Module, function: OfModel) -> None:
        super().__init__()
        self.model = model
        self._function = function
        self.training = model.training

    def forward(self) -> Tensor:
        return self._function(self.model)
