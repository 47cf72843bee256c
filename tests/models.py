"""Small models of many kinds, as users bring them, and steps on them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import learned_rule, train_config
from torch import Tensor, nn
from torch.nn import functional

from metaopt import LearnedOptimizer, LearnedRule
from metaopt.rules.base import Rule
from metaopt.rules.composed import MetaOptimizer

UPDATES = "coordinate_directions_update"


@dataclass
class Problem:
    """A model with what it is trained on.

    Attributes:
        model: initialised the same at every call.
        x: its inputs.
        labels: the class of each output.
    """

    model: nn.Module
    x: Tensor
    labels: Tensor

    def loss(self) -> Tensor:
        outputs = self.model(self.x)
        return functional.cross_entropy(outputs.flatten(0, -2).float(), self.labels)

    def backward(self) -> Tensor:
        self.model.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Problem:
        x = self.x.to(device)
        if x.is_floating_point():
            x = x.to(dtype)
        return Problem(self.model.to(device, dtype), x, self.labels.to(device))


class Block(nn.Module):
    """Embeddings with a learned scale (a parameter without axes), and one transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.scale * self.embedding(tokens)))


def convolutional() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 3),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    return Problem(model, torch.randn(10, 1, 8, 8), torch.arange(10) % 3)


def perceptron() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 13), nn.LeakyReLU(0.1), nn.Linear(13, 3))
    return Problem(model, torch.randn(10, 6), torch.arange(10) % 3)


def transformer() -> Problem:
    torch.manual_seed(0)
    tokens = torch.randint(7, (3, 5))
    return Problem(Block(), tokens, tokens.roll(1, 1).flatten())


def chain() -> Problem:
    """A model that allows teleports."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 4, bias=False), nn.LeakyReLU(0.1), nn.Linear(4, 3, bias=False)
    )
    return Problem(model, torch.randn(4, 5), torch.arange(4) % 3)


every_model = pytest.mark.parametrize(
    "make", [convolutional, perceptron, transformer], ids=lambda make: make.__name__
)


def hand_made(rule: Rule) -> LearnedRule:
    """A rule whose updates are known."""
    return LearnedRule(MetaOptimizer({"update": rule}, None), train_config(UPDATES))


def states(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Tensor]]:
    """A copy of the state of each parameter."""
    return {
        p: {key: value.clone() for key, value in own.items()} for p, own in optimizer.state.items()
    }


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def take_steps(problem: Problem, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        problem.backward()
        optimizer.step()


def stepped(make: Callable[[], Problem], rule: Any = None, **options: Any) -> Problem:
    """After a step, in float64."""
    problem = make().to(torch.float64)
    rule = learned_rule(UPDATES) if rule is None else rule
    take_steps(problem, LearnedOptimizer(problem.model, rule, **options), 1)
    return problem


def saved(state: Any) -> Any:
    """Through a file that runs no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
