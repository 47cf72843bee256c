"""Five optimizers of stacks, each run with a rate of its own, by ``torch.optim``'s formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from studies.teleport.stack import Layers

Rows = slice
"""Which runs: a slice, so that what it takes out of a stack is a view."""


class Optimizer:
    """What all have: rates [R], and state tensors that are 0 in the beginning.

    Attributes:
        moments: for each kind of state its power of the gradient (1 or 2) and its tensors.
    """

    powers: tuple[int, ...] = ()

    def __init__(self, layers: Layers, rates: Tensor) -> None:
        self.rates = rates.to(layers[0].dtype)[:, None, None]
        self.moments = [(power, [torch.zeros_like(W) for W in layers]) for power in self.powers]
        self.count = torch.zeros_like(self.rates)

    def reset(self, rows: Rows) -> None:
        """Forget everything of these runs, as an optimizer that is built anew does."""
        self.count[rows] = 0
        for _, tensors in self.moments:
            for tensor in tensors:
                tensor[rows] = 0

    def transport(self, rows: Rows, factors: Sequence[Tensor]) -> None:
        """Move the state as gradients move where weights are multiplied by ``factors``."""
        for power, tensors in self.moments:
            for tensor, factor in zip(tensors, factors, strict=True):
                tensor[rows] /= factor**power

    def step(self, layers: Layers, slopes: Layers) -> None:
        """Move weights in place; ``slopes`` are used up."""
        self.count += 1
        for i, (W, G) in enumerate(zip(layers, slopes, strict=True)):
            self._move(W, G, *(tensors[i] for _, tensors in self.moments))

    def _move(self, W: Tensor, G: Tensor, *state: Tensor) -> None:
        raise NotImplementedError


class SGD(Optimizer):
    """w -= lr g."""

    def _move(self, W: Tensor, G: Tensor, *state: Tensor) -> None:
        W.addcmul_(G, -self.rates)


class Momentum(Optimizer):
    """m = 0.9 m + g, w -= lr m."""

    powers = (1,)

    def _move(self, W: Tensor, G: Tensor, *state: Tensor) -> None:
        W.addcmul_(state[0].mul_(0.9).add_(G), -self.rates)


class AdaGrad(Optimizer):
    """v += g^2, w -= lr g / (sqrt v + 1e-10)."""

    powers = (2,)

    def _move(self, W: Tensor, G: Tensor, *state: Tensor) -> None:
        below = state[0].addcmul_(G, G).sqrt().add_(1e-10)
        W.addcdiv_(G.mul_(-self.rates), below)


class RMSProp(Optimizer):
    """v = 0.99 v + 0.01 g^2, w -= lr g / (sqrt v + 1e-8)."""

    powers = (2,)

    def _move(self, W: Tensor, G: Tensor, *state: Tensor) -> None:
        below = state[0].mul_(0.99).addcmul_(G, G, value=0.01).sqrt().add_(1e-8)
        W.addcdiv_(G.mul_(-self.rates), below)


class Adam(Optimizer):
    """m = 0.9 m + 0.1 g, v = 0.999 v + 0.001 g^2, each divided by 1 - beta^t."""

    powers = (1, 2)

    def _move(self, W: Tensor, G: Tensor, *state: Tensor) -> None:
        mean = state[0].mul_(0.9).add_(G, alpha=0.1)
        below = state[1].mul_(0.999).addcmul_(G, G, value=0.001).sqrt()
        below.div_((1 - 0.999**self.count).sqrt()).add_(1e-8)
        W.addcdiv_(torch.mul(mean, -self.rates / (1 - 0.9**self.count), out=G), below)


OPTIMIZERS: dict[str, Callable[[Layers, Tensor], Optimizer]] = {
    "SGD": SGD,
    "momentum": Momentum,
    "AdaGrad": AdaGrad,
    "RMSProp": RMSProp,
    "Adam": Adam,
}
