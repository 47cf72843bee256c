"""Models whose training a ledger follows, and steps on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from metaopt.optim.ledger import Ledger

RATES: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}
Change = Callable[[nn.Module], object]


class Transformer(nn.Module):
    """Pre-norm blocks, written out: two heads of width 4, learned positions, causal."""

    def __init__(self, depth: int = 2, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.positions = nn.Parameter(0.1 * torch.randn(6, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + fc2(relu(fc1(norm(x))))."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.fc2(functional.relu(self.fc1(self.norm2(x))))


def mlp() -> nn.Module:
    """Two layers of ReLU units and a pair of linear layers, with biases."""
    layers = [nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.LeakyReLU(), nn.Linear(6, 4)]
    return nn.Sequential(*layers, nn.Linear(4, 3))


def cnn() -> nn.Module:
    """A grouped convolution among others, BatchNorm with gains, pooling."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(12, 3)),
    )


def inputs(kind: str) -> Tensor:
    shapes = {"mlp": (16, 5), "cnn": (8, 1, 8, 8)}
    if kind == "transformer":
        return torch.randint(11, (4, 6))
    return torch.randn(shapes[kind], dtype=torch.float64)


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn, "transformer": Transformer}


def model_of(kind: str = "mlp") -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind]().double()


def backward(model: nn.Module, kind: str) -> Tensor:
    outputs = model(inputs(kind)).flatten(0, -2)
    loss = functional.cross_entropy(outputs, torch.randint(outputs.shape[1], (len(outputs),)))
    loss.backward()
    return loss.detach()


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    kind: str = "mlp",
    change: Change = lambda model: None,
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model, kind)
        change(model)
        optimizer.step()


def clip(model: nn.Module) -> Tensor:
    return nn.utils.clip_grad_norm_(model.parameters(), 0.3)


def worst(ledger: Ledger) -> float:
    return max(row["error"] for row in ledger.rows())
