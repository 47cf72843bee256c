"""A model around what tests of rules look at, and what is found in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import metaopt


class Around(nn.Module):
    """A layer, something, and a layer.

    Args:
        inside: what is between the layers.
        asks: whether the code asks for the size of the batch, which no trace knows.
    """

    def __init__(self, inside: Callable[[Tensor], Tensor], asks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.inside = inside
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        if self.asks:
            _ = list(x)
        return self.b(self.inside(self.a(x)))


def seen(model: nn.Module, permutations: bool = False) -> list[str]:
    """What is found without an example if the model can be traced, and else with one."""
    example = torch.randn(5, 4) if getattr(model, "asks", False) else None
    found = metaopt.symmetries(model, example, permutations=permutations)
    return [f"{symmetry.group}: {symmetry.name}" for symmetry in found]
