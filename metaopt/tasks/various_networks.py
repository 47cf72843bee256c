"""The perceptrons, convolutions and recurrent networks of ``various``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from metaopt.base.errors import UserError
from metaopt.tasks.various_layers import ACTIVATIONS, require

NORMS = ("none", "layer", "batch")
POOLS = ("max", "stride")


def perceptron(
    widths: Sequence[int], activation: str = "relu", norm: str = "none"
) -> nn.Sequential:
    """Linear layers with a norm and an activation between each two.

        f(x) = W_L s(norm(.. s(norm(W_1 x + b_1)) ..)) + b_L

    Args:
        widths: of the input, of the hidden layers, and of the output.
        activation: one of ``ACTIVATIONS``.
        norm: ``none``, ``layer`` or ``batch``.

    Raises:
        UserError: if an option is unknown.
    """
    require("activation", activation, ACTIVATIONS)
    require("norm", norm, NORMS)
    parts: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        if number:
            parts.append(ACTIVATIONS[activation]())
        parts.append(nn.Linear(inputs, outputs))
        if number < len(widths) - 2 and norm == "layer":
            parts.append(nn.LayerNorm(outputs))
        elif number < len(widths) - 2 and norm == "batch":
            parts.append(nn.BatchNorm1d(outputs, track_running_stats=False))
    return nn.Sequential(*parts)


def convolutions(
    side: int, channels: Sequence[int], classes: int, activation: str, norm: str, pool: str
) -> nn.Sequential:
    """Convolutions of kernel 3, each of the first two followed by pooling, and a linear layer.

    Args:
        side: rows, and columns, of an image; a multiple of 4 if ``pool`` is ``max``.
        channels: of each convolution.
        classes: the number of logits.
        activation: one of ``ACTIVATIONS``.
        norm: ``none`` or ``batch``.
        pool: ``max``, or ``stride``: convolutions of stride 2 instead.

    Raises:
        UserError: if an option is unknown.
    """
    require("activation", activation, ACTIVATIONS)
    require("norm", norm, ("none", "batch"))
    require("pool", pool, POOLS)
    if not channels:
        raise UserError("hidden: found no convolution, expected channels such as '8-16'")
    parts: list[nn.Module] = [nn.Unflatten(1, (1, side, side))]
    for number, (inputs, outputs) in enumerate(pairwise([1, *channels])):
        smaller = number < 2
        stride = 2 if smaller and pool == "stride" else 1
        parts.append(convolution(inputs, outputs, stride, norm))
        parts.append(ACTIVATIONS[activation]())
        if smaller and pool == "max":
            parts.append(nn.MaxPool2d(2))
        side = (side + 1) // 2 if smaller else side
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels[-1] * side**2, classes))


def convolution(inputs: int, outputs: int, stride: int, norm: str) -> nn.Module:
    """A convolution of kernel 3, with a bias, or with BatchNorm instead."""
    batch = norm == "batch"
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=not batch)
    if not batch:
        return layer
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, track_running_stats=False))


class ResidualImages(nn.Module):
    """A convolution of stride 2, residual blocks of two convolutions, the mean, a linear layer.

        x <- s(x + C2 s(C1 x))        in each block

    Args:
        side: rows, and columns, of an image.
        width: channels of all convolutions.
        blocks: the number of residual blocks.
        classes: the number of logits.
        activation: one of ``ACTIVATIONS``.
        norm: ``none`` or ``batch``, of every convolution.
    """

    def __init__(
        self, side: int, width: int, blocks: int, classes: int, activation: str, norm: str
    ) -> None:
        super().__init__()
        require("activation", activation, ACTIVATIONS)
        require("norm", norm, ("none", "batch"))
        self.side = side
        self.act = ACTIVATIONS[activation]()
        self.stem = convolution(1, width, 2, norm)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                convolution(width, width, 1, norm),
                ACTIVATIONS[activation](),
                convolution(width, width, 1, norm),
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, side^2]."""
        x = self.act(self.stem(x.reshape(-1, 1, self.side, self.side)))
        for block in self.blocks:
            x = self.act(x + block(x))
        return self.head(x.mean((2, 3)))


class Grams(nn.Module):
    """Embedded tokens side by side, and a perceptron.

    Args:
        tokens: the size of the vocabulary.
        context: the number of tokens in a row.
        width: of an embedded token.
        hidden: widths of hidden layers.
        activation: one of ``ACTIVATIONS``.
        norm: of the perceptron.

    References:
        Bengio, Ducharme, Vincent and Jauvin, A neural probabilistic language model (2003).
    """

    def __init__(
        self,
        tokens: int,
        context: int,
        width: int,
        hidden: Sequence[int],
        activation: str,
        norm: str,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.layers = perceptron([context * width, *hidden, tokens], activation, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, tokens] of tokens [N, context]."""
        return self.layers(self.embed(x).flatten(1))


class Recurrent(nn.Module):
    """A simple recurrent network: h <- tanh(U x + V h + b), logits W h + c at each place.

    Args:
        tokens: the size of the vocabulary.
        width: of an embedded token.
        state: of h.
    """

    def __init__(self, tokens: int, width: int, state: int) -> None:
        super().__init__()
        self.state = state
        self.embed = nn.Embedding(tokens, width)
        self.enter = nn.Linear(width, state)
        self.stay = nn.Linear(state, state, bias=False)
        self.head = nn.Linear(state, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, T, tokens] of tokens [N, T]."""
        entering = self.enter(self.embed(x)).unbind(1)
        h = torch.tanh(entering[0])
        states = [h]
        for one in entering[1:]:
            h = torch.tanh(one + self.stay(h))
            states.append(h)
        return self.head(torch.stack(states, dim=1))
