"""Functions of two numbers as models: Booth's and Rosenbrock's, with rotations of residuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.symmetry.motion import OwnSymmetry

NOTHING = torch.zeros(1)
DATA = (NOTHING, NOTHING)
"""Data of a model that reads none."""


def given(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss is what the model returns."""
    return outputs.mean()


class Booth(nn.Module):
    """(x + 2y - 7)^2 + (2x + y - 5)^2."""

    def __init__(self, start: Sequence[float] = (5.0, -5.0)) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.residuals(self.w).square().sum() + 0 * inputs.double()

    @staticmethod
    def residuals(w: Tensor) -> Tensor:
        return torch.stack([w[0] + 2 * w[1] - 7, 2 * w[0] + w[1] - 5])

    @staticmethod
    def solved(r: Tensor) -> Tensor:
        return torch.stack([-r[0] / 3 + 2 * r[1] / 3 + 1, 2 * r[0] / 3 - r[1] / 3 + 3])

    def squared_gradient(self) -> float:
        (G,) = torch.autograd.grad(self(NOTHING).sum(), [self.w])
        return float(G.square().sum())


class Rosenbrock(Booth):
    """100 (x^2 - y)^2 + (x - 1)^2."""

    @staticmethod
    def residuals(w: Tensor) -> Tensor:
        return torch.stack([10 * (w[0] ** 2 - w[1]), w[0] - 1])

    @staticmethod
    def solved(r: Tensor) -> Tensor:
        return torch.stack([r[1] + 1, (r[1] + 1) ** 2 - r[0] / 10])


def rotation(kind: type[Booth]) -> OwnSymmetry:
    """SO(2) on the residuals."""

    def act(weights: dict[str, Tensor], angle: Tensor) -> dict[str, Tensor]:
        u, v = kind.residuals(weights["w"])
        cos, sin = torch.cos(angle), torch.sin(angle)
        return {"w": kind.solved(torch.stack([cos * u - sin * v, sin * u + cos * v]))}

    return OwnSymmetry("SO(2)", act, is_compact=True)


mse: Callable[[Any, Tensor], Tensor] = functional.mse_loss


def network(dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    """A network of two hidden layers with data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    return model.to(dtype), (torch.randn(40, 4, dtype=dtype), torch.randn(40, 3, dtype=dtype))


def squared_gradient(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    loss = mse(model(data[0]), data[1])
    return float(sum(G.square().sum() for G in torch.autograd.grad(loss, list(model.parameters()))))
