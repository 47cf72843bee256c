"""Layers that the networks of ``various`` are made of.

attention   o(softmax(q k^T / sqrt d) v) in each head, d = width / heads
norms first z <- z + Attention(norm(z)),   z <- z + W2 s(W1 norm(z) + b1) + b2
norms last  z <- norm(z + Attention(z)),   z <- norm(z + W2 s(W1 z + b1) + b2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaopt.base.errors import UserError
from metaopt.tasks.image_networks import SLOPE

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(SLOPE),
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
}
SMALL = 0.02
"""The standard deviation that BERT draws its weights with."""


class SmallLinear(nn.Linear):
    """A linear layer that starts as BERT's do: weights of standard deviation 0.02, no bias."""

    def reset_parameters(self) -> None:
        """Draw new weights."""
        nn.init.normal_(self.weight, std=SMALL)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class SmallEmbedding(nn.Embedding):
    """A table that starts as BERT's do: entries of standard deviation 0.02."""

    def reset_parameters(self) -> None:
        """Draw new entries."""
        nn.init.normal_(self.weight, std=SMALL)


class JoinedLinear(nn.Linear):
    """Queries, keys and values side by side, which start as those of torch's attention do."""

    def reset_parameters(self) -> None:
        """Draw new weights."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


@dataclass(frozen=True)
class Start:
    """The initial weights of a transformer.

    Attributes:
        table: makes embeddings.
        linear: makes linear layers.
        joined: makes queries, keys and values as one layer; None: they are three layers.
    """

    table: type[nn.Embedding]
    linear: type[nn.Linear]
    joined: type[nn.Linear] | None


STARTS = {
    "torch": Start(nn.Embedding, nn.Linear, JoinedLinear),
    "small_tables": Start(SmallEmbedding, nn.Linear, JoinedLinear),
    "bert": Start(SmallEmbedding, SmallLinear, None),
}


class Attention(nn.Module):
    """Attention of every token to all tokens, or to itself and those before it.

    Args:
        width: the width of a token.
        heads: the number of heads, a divisor of ``width``.
        start: how its layers are made.
        causal: whether tokens attend to no later ones.
    """

    def __init__(self, width: int, heads: int, start: Start, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        made = start.joined
        self.joined = None if made is None else made(width, 3 * width)
        if made is None:
            self.q, self.k, self.v = (start.linear(width, width) for _ in range(3))
        self.o = start.linear(width, width)

    def forward(self, z: Tensor) -> Tensor:
        """Tokens [N, T, width] -> [N, T, width]."""
        count, tokens, width = z.shape
        split = (count, tokens, self.heads, width // self.heads)
        if self.joined is None:
            parts = (self.q(z), self.k(z), self.v(z))
        else:
            parts = self.joined(z).chunk(3, dim=-1)
        q, k, v = (part.reshape(split).transpose(1, 2) for part in parts)
        # Few tokens: a softmax along the last axis would take several times as long.
        scores = k @ q.transpose(2, 3) * q.shape[-1] ** -0.5
        if self.causal:
            later = torch.ones(tokens, tokens, dtype=torch.bool, device=z.device).tril(-1)
            scores = scores.masked_fill(later, -torch.inf)
        mixed = scores.softmax(2).transpose(2, 3) @ v
        return self.o(mixed.transpose(1, 2).reshape(count, tokens, width))


class Block(nn.Module):
    """A transformer layer.

    Args:
        width: the width of a token.
        heads: the number of heads.
        inner: the width of the feed-forward part.
        first: whether its two norms come first, or last.
        activation: one of ``ACTIVATIONS``.
        start: how its layers are made.
        causal: whether tokens attend to no later ones.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        first: bool,
        activation: str,
        start: Start,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.first = first
        self.attention = Attention(width, heads, start, causal)
        self.up = start.linear(width, inner)
        self.activation = ACTIVATIONS[activation]()
        self.down = start.linear(inner, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, z: Tensor) -> Tensor:
        """Tokens [N, T, width] -> [N, T, width]."""
        if self.first:
            z = z + self.attention(self.norm1(z))
            return z + self._fed(self.norm2(z))
        z = self.norm1(z + self.attention(z))
        return self.norm2(z + self._fed(z))

    def _fed(self, z: Tensor) -> Tensor:
        return self.down(self.activation(self.up(z)))


def require(name: str, found: str, known: Iterable[str]) -> None:
    """Raise ``UserError`` unless an option is one of those known."""
    if found not in known:
        raise UserError(f"{name}: found {found!r}, expected one of {', '.join(known)}")


def sizes(name: str, found: str) -> list[int]:
    """The whole numbers of an option such as "24-16", none of "".

    Raises:
        UserError: if it is no such text.
    """
    parts = found.split("-") if found else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{name}: found {found!r}, expected sizes such as '24-16', or ''")
    return [int(part) for part in parts]


def one_size(name: str, found: str) -> int:
    """The whole number of an option such as "24".

    Raises:
        UserError: if it is no such text.
    """
    parts = sizes(name, found)
    if len(parts) != 1:
        raise UserError(f"{name}: found {found!r}, expected one size such as '24'")
    return parts[0]
