"""Norms in tasks: second derivatives against central differences, the rest against torch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import metaopt
from metaopt.base.streams import Stream
from metaopt.tasks.attention import Attention
from metaopt.tasks.images import Images
from metaopt.tasks.own_batch import LossFamily, LossTasks

ROWS, TOKENS, IMAGES = (5, 6), (3, 4, 6), (3, 4, 2, 2)
MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "LayerNorm": (nn.LayerNorm(6), ROWS),
    "LayerNorm, two axes": (nn.LayerNorm([4, 6], bias=False), TOKENS),
    "BatchNorm1d": (nn.BatchNorm1d(6, track_running_stats=False), ROWS),
    "BatchNorm1d, tokens": (nn.BatchNorm1d(4, track_running_stats=False), TOKENS),
    "BatchNorm2d": (nn.BatchNorm2d(4, track_running_stats=False), IMAGES),
    "BatchNorm2d, known": (nn.BatchNorm2d(4, dtype=torch.float64).eval(), IMAGES),
    "InstanceNorm1d": (nn.InstanceNorm1d(4, affine=True), TOKENS),
    "GroupNorm, rows": (nn.GroupNorm(2, 6), ROWS),
    "GroupNorm": (nn.GroupNorm(2, 4), IMAGES),
    "RMSNorm": (nn.RMSNorm(6), ROWS),
    "weight norm": (parametrizations.weight_norm(nn.Linear(6, 3)), ROWS),
    "norms last": (nn.TransformerEncoderLayer(6, 2, 4, 0.0, batch_first=True), TOKENS),
    "norms first": (
        nn.TransformerEncoderLayer(6, 2, 4, 0.0, batch_first=True, norm_first=True).eval(),
        TOKENS,
    ),
}


class Between(metaopt.Family):
    """mean tanh(f(V x) + u)^2 of a module f: V makes f's input depend on the weights."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        self.module, self.shape = module, shape

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        """Weights of any size, and numbers."""

        def drawn(*shape: int) -> Tensor:
            return torch.from_numpy(generator.standard_normal(shape))

        weights = {name: drawn(*p.shape) for name, p in self.module.named_parameters()}
        weights = {"V": drawn(*self.shape[1:2], *self.shape[1:2]), **weights}
        return metaopt.Task(weights, (drawn(*self.shape),))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """A loss without symmetries."""
        (x,) = data
        moved = torch.einsum("nc...,cd->nd...", x, weights["V"])
        inner = {name: W for name, W in weights.items() if name != "V"}
        y = functional_call(self.module, inner, (moved,))
        return (torch.tanh(y + x.flatten()[: y.numel()].reshape(y.shape)) ** 2).mean()


def drawn(own: Any) -> LossTasks:
    return LossFamily(own, "own").sample(Stream.TRAIN, 0, 0, 2, torch.float64).at(0)


def assert_exact_twice(tasks: LossTasks) -> None:
    """The gradient of <grad L, v> is the central difference of grad L along v."""
    numbers = torch.Generator().manual_seed(0)
    along = [torch.randn(W.shape, generator=numbers, dtype=W.dtype) for W in tasks.initial]
    weights = tuple(W.clone().requires_grad_() for W in tasks.initial)
    grads = tasks.observe(weights).grads
    products = (torch.sum(G * v) for G, v in zip(grads, along, strict=True))
    found = torch.autograd.grad(
        sum(products, torch.zeros(())), weights, allow_unused=True, materialize_grads=True
    )
    step = 2e-6
    ends = [
        tasks.observe(tuple(W + s * v for W, v in zip(tasks.initial, along, strict=True))).grads
        for s in (step, -step)
    ]
    wanted = [(up - down) / (2 * step) for up, down in zip(*ends, strict=True)]
    flat, near = (torch.cat([part.flatten() for part in parts]) for parts in (found, wanted))
    assert float((flat - near).norm() / near.norm()) < 1e-6


@pytest.mark.parametrize("kind", MODULES)
def test_modules_are_exact_to_second_order(kind: str) -> None:
    assert_exact_twice(drawn(Between(*MODULES[kind])))


@pytest.mark.parametrize("kind", MODULES)
def test_values_and_gradients_are_those_of_torch(kind: str) -> None:
    own = Between(*MODULES[kind])
    tasks = drawn(own)
    seen = tasks.observe(tasks.initial)
    assert seen.loss is not None
    torch.testing.assert_close(tasks.loss(tasks.initial), seen.loss, rtol=1e-12, atol=0)
    for b in range(tasks.size):
        weights = {
            name: W[b].reshape(shape).clone().requires_grad_()
            for (name, shape), W in zip(tasks.shapes.items(), tasks.initial, strict=True)
        }
        loss = own.loss(weights, (tasks.data[0][b],))
        torch.testing.assert_close(seen.loss[b], loss, rtol=1e-12, atol=0)
        grads = torch.autograd.grad(loss, list(weights.values()))
        for mine, G in zip(seen.grads, grads, strict=True):
            torch.testing.assert_close(mine[b].flatten(), G.flatten(), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    "own",
    [Images(4, "four_layers"), Images(4, "transformer"), Attention(4)],
    ids=["four_layers", "transformer", "attention"],
)
def test_families_with_norms_are_exact_to_second_order(own: metaopt.Family) -> None:
    assert_exact_twice(drawn(own))
