"""Small transformers whose attention is written out, so that single projections can be replaced.

    z <- z + Attention(norm(z)),   z <- z + W2 gelu(W1 norm(z) + b1) + b2

Queries, keys and values have a linear layer each. ``metaopt.symmetries`` finds GL(d) of the queries
and keys, and of the values and the output, of every head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """o(softmax(q k^T / sqrt d) v) in each head, d = width / heads.

    Args:
        width: the width of a token.
        heads: the number of heads, a divisor of ``width``.
        bias: whether the four projections have biases.
    """

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, width, bias=bias)
        self.v = nn.Linear(width, width, bias=bias)
        self.o = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, T, width] -> [N, T, width]."""
        count, tokens, width = x.shape
        split = (count, tokens, self.heads, width // self.heads)
        q, k, v = (layer(x).view(split).transpose(1, 2) for layer in (self.q, self.k, self.v))
        # Few tokens: a softmax along the last axis would take several times as long.
        shares = (k @ q.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(2)
        mixed = shares.transpose(2, 3) @ v
        return self.o(mixed.transpose(1, 2).reshape(count, tokens, width))


class Block(nn.Module):
    """A transformer layer: attention, then a feed-forward part of twice the width.

    Args:
        width: the width of a token.
        heads: the number of heads.
        bias: whether the projections of the attention have biases.
    """

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, bias)
        self.between = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, z: Tensor) -> Tensor:
        """Tokens [N, T, width] -> [N, T, width]."""
        z = z + self.attention(self.before(z))
        return z + self.down(functional.gelu(self.up(self.between(z))))


class TokenTransformer(nn.Module):
    """Blocks over embedded tokens, and a linear head.

    Args:
        inputs: the number of entries of a token.
        tokens: the number of tokens T.
        width: the width of an embedded token.
        heads: the number of heads.
        layers: the number of blocks.
        outputs: the number of logits.
        bias: whether the projections of the attention have biases.
        last: whether the head reads the last token; otherwise the mean of all.
    """

    def __init__(
        self,
        inputs: int,
        tokens: int,
        width: int,
        heads: int,
        layers: int,
        outputs: int,
        bias: bool = True,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.last = last
        self.embed = nn.Linear(inputs, width)
        self.places = nn.Parameter(torch.empty(tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads, bias) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new embeddings of the places; the layers have a method of their own."""
        nn.init.normal_(self.places, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, T, inputs] -> logits [N, outputs]."""
        z = self.norm(self.blocks(self.embed(x) + self.places))
        return self.head(z[:, -1] if self.last else z.mean(1))
