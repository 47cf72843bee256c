"""The networks of the tasks, none of a kind that meta-training sees at these sizes."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def perceptron(widths: list[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers with an activation between each two."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def normalised(inputs: int, width: int, outputs: int) -> nn.Module:
    """A wide layer, a LayerNorm, SiLU, a linear layer."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, outputs)
    )


class Residual(nn.Module):
    """A convolution with stride 2, a residual block of two convolutions, the mean, a head.

    Args:
        inputs: channels of an image.
        channels: of all layers.
        classes: of the head.
        norms: whether a BatchNorm follows each convolution.
    """

    def __init__(self, inputs: int, channels: int, classes: int, norms: bool) -> None:
        super().__init__()

        def convolution(given: int, stride: int) -> nn.Module:
            layer = nn.Conv2d(given, channels, 3, stride, padding=1, bias=not norms)
            return nn.Sequential(layer, nn.BatchNorm2d(channels)) if norms else layer

        self.stem = convolution(inputs, 2)
        self.block = nn.Sequential(convolution(channels, 1), nn.ReLU(), convolution(channels, 1))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, inputs, rows, columns]."""
        x = self.stem(x).relu()
        x = (x + self.block(x)).relu()
        return self.head(x.mean((2, 3)))


def _encoder(width: int, heads: int, inner: int, layers: int, first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        width, heads, inner, dropout=0.0, activation="gelu", batch_first=True, norm_first=first
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class RowsReader(nn.Module):
    """A transformer layer with norms first over the rows of an image, 24 wide; a norm; the mean."""

    def __init__(self, rows: int, columns: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(columns, 24)
        self.place = nn.Embedding(rows, 24)
        self.encoder = _encoder(24, 3, 48, 1, True)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, rows, columns]."""
        h = self.encoder(self.embed(x) + self.place.weight)
        return self.head(self.norm(h).mean(1))


class TinyBert(nn.Module):
    """Tokens and places, a LayerNorm, two transformer layers with norms last, 32 wide; a head."""

    def __init__(self, tokens: int, places: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 32)
        self.place = nn.Embedding(places, 32)
        # BERT's own initial scale.
        for table in (self.embed, self.place):
            nn.init.normal_(table.weight, std=0.02)
        self.norm = nn.LayerNorm(32)
        self.encoder = _encoder(32, 2, 64, 2, False)
        self.head = nn.Linear(32, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, places, tokens] of tokens [N, places]."""
        return self.head(self.encoder(self.norm(self.embed(x) + self.place.weight)))


class Recurrent(nn.Module):
    """A GRU over embedded characters; at each place logits of the next one."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 16)
        self.cells = nn.GRU(16, 40, batch_first=True)
        self.head = nn.Linear(40, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, places, tokens] of tokens [N, places]."""
        return self.head(self.cells(self.embed(x))[0])


class NeuralGrams(nn.Module):
    """Three embedded words side by side, a layer of tanh, logits of the fourth.

    References:
        Bengio, Ducharme, Vincent and Jauvin, A neural probabilistic language model (2003).
    """

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 20)
        self.hidden = nn.Linear(20 * context, 40)
        self.head = nn.Linear(40, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, tokens] of words [N, context]."""
        return self.head(torch.tanh(self.hidden(self.embed(x).flatten(1))))
