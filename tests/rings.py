"""A problem in two weights whose minima are a circle, and small networks to join."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NOTHING = (torch.zeros(1, 1), torch.zeros(1))
"""Data of a problem without data."""


class Place(nn.Module):
    """Weights that are the outputs, in float64."""

    def __init__(self, *w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), len(self.w))


def ring(outputs: Tensor, _: Tensor) -> Tensor:
    """(x^2 + y^2 - 1)^2."""
    return ((outputs.square().sum(1) - 1) ** 2).mean()


def places(*points: Sequence[float]) -> list[Place]:
    return [Place(*point) for point in points]


def convolutional(seed: int, dropout: float = 0.0) -> nn.Sequential:
    """With batch normalisation, for images [1, 6, 6] and 3 classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def images(count: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 6, 6] with a bright corner that says their class."""
    numbers = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    x = 0.3 * torch.randn(count, 1, 6, 6, generator=numbers)
    for one, label in zip(x, labels.tolist(), strict=True):
        one[0, 2 * label : 2 * label + 2] += 1.0
    return x, labels


def trained(model: nn.Module, data: tuple[Tensor, Tensor], steps: int = 40) -> nn.Module:
    """A model after some steps of Adam, in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    return model.eval()
