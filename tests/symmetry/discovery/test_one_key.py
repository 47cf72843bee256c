"""Attention in which all heads read one key and one value (multi-query)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import metaopt


class OneKey(nn.Module):
    """Four queries, one key, one value."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 12), nn.Linear(8, 3)
        self.v, self.o = nn.Linear(8, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 4, 3).transpose(1, 2)
        k, v = self.k(x).unsqueeze(1), self.v(x).unsqueeze(1)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).reshape(batch, length, 12))


def test_heads_share_the_matrices_of_their_key_and_value() -> None:
    torch.manual_seed(0)
    model = OneKey().double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    found = metaopt.symmetries(model, x, permutations=True)
    assert [(str(s.group), s.name, s.size, s.blocks) for s in found] == [
        ("general linear", "q -> k", 3, 1),
        ("permutation", "q -> o", 4, 1),
        ("translation", "k.bias", 1, 3),
        ("general linear", "v -> o", 3, 1),
    ]
    before = model(x)
    metaopt.teleport(model, symmetries=found)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-12)
