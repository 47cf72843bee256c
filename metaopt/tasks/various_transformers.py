"""The transformers of ``various``: over the rows of images, and over tokens of a vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.base.errors import UserError
from metaopt.tasks.various_layers import ACTIVATIONS, STARTS, Block, require


@dataclass(frozen=True)
class Blocks:
    """Transformer layers, one after the other.

    Attributes:
        width: the width of a token.
        heads: the number of heads, a divisor of ``width``.
        inner: the width of the feed-forward part.
        layers: the number of layers.
        first: whether norms come first, or last.
        final: whether a norm follows the last layer.
        activation: one of ``ACTIVATIONS``.
        init: one of ``STARTS``.
        causal: whether tokens attend to no later ones.

    Raises:
        UserError: if an option is unknown, or the heads do not divide the width.
    """

    width: int
    heads: int
    inner: int
    layers: int
    first: bool
    final: bool
    activation: str = "gelu"
    init: str = "torch"
    causal: bool = False

    def __post_init__(self) -> None:
        require("activation", self.activation, ACTIVATIONS)
        require("init", self.init, STARTS)
        if self.heads < 1 or self.width % self.heads:
            raise UserError(f"width: found {self.width}, expected a multiple of {self.heads} heads")

    def made(self) -> nn.Sequential:
        """The layers, with fresh weights."""
        start = STARTS[self.init]
        layers: list[nn.Module] = [
            Block(
                self.width,
                self.heads,
                self.inner,
                self.first,
                self.activation,
                start,
                self.causal,
            )
            for _ in range(self.layers)
        ]
        return nn.Sequential(*layers, *[nn.LayerNorm(self.width)] * self.final)


class RowReader(nn.Module):
    """Blocks over the rows of an image, each embedded by a linear layer; the mean; a linear layer.

    Args:
        side: rows, and columns, of an image.
        blocks: the layers.
        classes: the number of logits.
    """

    def __init__(self, side: int, blocks: Blocks, classes: int) -> None:
        super().__init__()
        start = STARTS[blocks.init]
        self.side = side
        self.embed = start.linear(side, blocks.width)
        self.places = start.table(side, blocks.width)
        self.blocks = blocks.made()
        self.head = start.linear(blocks.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, side^2]."""
        rows = self.embed(x.reshape(-1, self.side, self.side))
        return self.head(self.blocks(rows + self.places.weight).mean(1))


class TokenReader(nn.Module):
    """Blocks over embedded tokens of a vocabulary, and logits.

    Args:
        tokens: the size of the vocabulary.
        places: the number of tokens in a row.
        blocks: the layers.
        outputs: the number of logits.
        normed: whether a norm follows the embedding, as in BERT.
        mean: whether the head reads the mean of the tokens, or each of them.
        tied: whether the head is the table of the tokens, transposed.
    """

    def __init__(
        self,
        tokens: int,
        places: int,
        blocks: Blocks,
        outputs: int,
        normed: bool = False,
        mean: bool = False,
        tied: bool = False,
    ) -> None:
        super().__init__()
        start = STARTS[blocks.init]
        self.mean = mean
        self.embed = start.table(tokens, blocks.width)
        self.places = start.table(places, blocks.width)
        self.norm = nn.LayerNorm(blocks.width) if normed else nn.Identity()
        self.blocks = blocks.made()
        self.head = None if tied else start.linear(blocks.width, outputs)

    def forward(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Logits [N, T, outputs] of tokens [N, T], or [N, outputs] of their mean.

        Args:
            x: the tokens.
            at: the places that are asked for, [N, K]: logits are [N, K, outputs]. None: all.
        """
        z = self.blocks(self.norm(self.embed(x) + self.places.weight))
        if self.mean:
            z = z.mean(1)
        if at is not None:
            z = torch.take_along_dim(z, at[..., None], dim=1)
        return functional.linear(z, self.embed.weight) if self.head is None else self.head(z)
