"""Attention of separate linear layers, written out."""

from __future__ import annotations

from torch import Tensor, nn


class Heads(nn.Module):
    """Two heads, averaged over positions: [N, T, 6] -> [N, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) / 3**0.5).softmax(-1)
        y: Tensor = self.o((weights @ v).transpose(1, 2).flatten(2)).mean(1)
        return y
