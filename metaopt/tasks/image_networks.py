"""The networks of ``images``: each reads images [N, n] and returns logits [N, classes]."""

from __future__ import annotations

import math

from torch import Tensor, nn

SLOPE = 0.1
TOKEN = 16
HEADS = 2


class RowTransformer(nn.Module):
    """A transformer layer over the rows of an image: each row is a token.

    Args:
        side: the number of rows, and of columns, of an image.
        width: the width of the layer's feed-forward part.
        classes: the number of classes.
    """

    def __init__(self, side: int, width: int, classes: int) -> None:
        super().__init__()
        self.side = side
        self.embed = nn.Linear(side, TOKEN)
        self.layer = nn.TransformerEncoderLayer(
            TOKEN, HEADS, width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(TOKEN, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] for images [N, side^2]."""
        tokens = self.embed(x.reshape(-1, self.side, self.side))
        return self.head(self.layer(tokens).mean(1))


def two_layers(inputs: int, width: int, classes: int) -> nn.Module:
    """f(x) = W2 s(W1 x + b1) + b2, with s LeakyReLU."""
    return nn.Sequential(nn.Linear(inputs, width), nn.LeakyReLU(SLOPE), nn.Linear(width, classes))


def four_layers(inputs: int, width: int, classes: int) -> nn.Module:
    """Four linear layers with ReLU between them, and a LayerNorm after the second."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.LayerNorm(width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def convolutions(inputs: int, width: int, classes: int) -> nn.Module:
    """Two convolutions with stride 2, of width / 4 and width / 2 channels, and a linear layer."""
    side = math.isqrt(inputs)
    few, many = max(1, width // 4), max(1, width // 2)
    left = (side + 1) // 2
    left = (left + 1) // 2
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, few, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(few, many, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(many * left**2, classes),
    )


def transformer(inputs: int, width: int, classes: int) -> nn.Module:
    """A ``RowTransformer`` for images of ``inputs`` pixels."""
    return RowTransformer(math.isqrt(inputs), width, classes)


NETWORKS = {
    "two_layers": two_layers,
    "four_layers": four_layers,
    "convolutions": convolutions,
    "transformer": transformer,
}
