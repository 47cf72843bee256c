"""Small models whose symmetries are known, and moves along them, for tests of alignment."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.groups import Group, Symmetry
from metaopt.teleport.module import teleport


def mlp(act: type[nn.Module], widths: tuple[int, ...] = (6, 8, 5, 3)) -> nn.Sequential:
    """Layers with an activation between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), act()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Sequential:
    """BatchNorm, and a flattened image."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 7), nn.Tanh(),
        nn.Linear(7, 4),
    )  # fmt: skip


class ResNet(nn.Module):
    """One stream, to which two blocks add."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.first = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        self.second = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        self.inner = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(2)])
        self.outer = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(2)])
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        for c1, n1, c2, n2 in zip(self.first, self.inner, self.second, self.outer, strict=True):
            x = functional.relu(x + n2(c2(functional.relu(n1(c1(x))))))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """A stream with LayerNorm, heads whose keys may be fewer than queries, and a feed-forward."""

    def __init__(self, heads: int = 4, keys: int = 4, each: int = 3, width: int = 8) -> None:
        super().__init__()
        self.heads, self.keys, self.each = heads, keys, each
        self.embed = nn.Linear(3, width)
        self.norm, self.norm2, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.o = nn.Linear(width, heads * each), nn.Linear(heads * each, width)
        self.k, self.v = (nn.Linear(width, keys * each) for _ in range(2))
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        n, length, _ = y.shape
        q = self.q(y).view(n, length, self.heads, self.each).transpose(1, 2)
        k, v = (
            m(y).view(n, length, self.keys, self.each).transpose(1, 2) for m in (self.k, self.v)
        )
        grouped = self.heads != self.keys
        z = functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
        x = x + self.o(z.transpose(1, 2).reshape(n, length, -1))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(self.last(x).mean(1))


def noisy(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and evaluation mode, all its numbers moved a little."""
    numbers = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for path, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=numbers, dtype=torch.float64)
                tensor += 0.6 * noise if "running" in path else 0.6 * (noise - 0.5)
    return model


def planted(model: nn.Module, x: Tensor, rounds: int = 2) -> tuple[nn.Module, list[Symmetry]]:
    """A copy that is moved along everything that is found: permutations, signs, scales, frames."""
    found = symmetries(model, x, permutations=True)
    signs = [
        replace(one, group=Group.SIGNS)
        for one in found
        if Group.SIGNS in one.allows and Group.LINEAR not in one.allows
    ]
    moved = deepcopy(model)
    for seed in range(rounds):
        for some in (found, signs):
            if some:
                teleport(moved, norm=1.0, seed=seed, symmetries=some)
    return moved, list(found)
