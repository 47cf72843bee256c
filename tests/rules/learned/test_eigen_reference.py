"""The untrained rule of eigenbases, against its equations written out matrix by matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metaopt.base.loss_statistics import FLOOR
from metaopt.rules.averaging import AHEAD, averages
from metaopt.rules.base import State
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.learned import symmetric
from metaopt.rules.learned.eigen_config import EigenConfig
from metaopt.rules.learned.spectral import BLOWING
from metaopt.rules.rule_config import Place
from metaopt.tasks.base import Observation
from metaopt.tasks.config import TaskConfig

SHAPES = [(6, 6), (5, 1), (4, 4), (1, 6)]
STEPS = 25


def drawn(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


class Written:
    """One parameter W [out, rest]: what the rule keeps of it, each thing as a matrix of its own."""

    def __init__(self, W: Tensor, matrices: int) -> None:
        self.z, self.x, self.y = W, W, W
        self.m, self.v = torch.zeros_like(W), torch.zeros_like(W)
        self.is_matrix = min(W.shape) > 1
        self.products = [torch.zeros(n, n).double() for n in W.shape]
        self.frames = [torch.eye(n).double() for n in W.shape]
        self.size = (max(W.shape) ** -0.5 if self.is_matrix else 0.03) * matrices**-0.5

    def see(self, t: int, G: Tensor) -> None:
        """Products, frames, means."""
        if self.is_matrix:
            decay = 0.95 if t <= 10 else 0.95**2
            for i, X in enumerate((G, G.mT)):
                if t <= 10 or t % 2 == 0:
                    self.products[i] = decay * self.products[i] + (1 - decay) * X @ X.mT
            if t == 1:
                self.frames = [torch.linalg.eigh(L)[1].flip(-1) for L in self.products]
            elif t in (2, 3, 4, 6, 8) or t % 10 == 0:
                both = zip(self.products, self.frames, strict=True)
                new = [torch.linalg.qr(L @ Q)[0] for L, Q in both]
                U, V = (n.mT @ Q for n, Q in zip(new, self.frames, strict=True))
                self.m, self.v = U @ self.m @ V.mT, U.square() @ self.v @ V.square().mT
                self.frames = new
        self.g = self.frames[0].mT @ G @ self.frames[1]
        self.m = 0.5 * self.m + 0.5 * self.g
        self.v = 0.99 * self.v + 0.01 * self.g.square()

    def step(self, t: int, mean_of_all: float) -> None:
        """The update of z, and the averages."""
        root = (self.v + 1e-6 * self.v.mean() + 1e-10 * mean_of_all + FLOOR).sqrt()
        adam = self.m / root * math.sqrt(1 - 0.99**t) / (1 - 0.5**t)
        U, S, Vh = torch.linalg.svd(self.g + self.m / (1 - 0.5**t), full_matrices=False)
        S = S / S.norm()
        if self.is_matrix:
            a, b, c = BLOWING
            for _ in range(5):
                S = a * S + b * S**3 + c * S**5
        orthogonal = U @ torch.diag(S) @ Vh * max(self.m.shape) ** 0.5 * adam.square().mean().sqrt()
        length = 0.5 / (1 + t / 100)
        mixed = self.frames[0] @ (0.5 * adam + 0.5 * orthogonal) @ self.frames[1].mT
        decay = 0.01 * length * self.y if self.y.shape[1] > 1 else 0.0
        self.z = self.z - self.size * length * mixed - decay
        self.x = self.x + 8 / (t + 8) * (self.z - self.x)
        self.y = 0.9 * self.x + 0.1 * self.z


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_steps_are_those_of_the_equations(batch: int) -> None:
    rule = EigenConfig.model_validate({"kind": "eigen_lstm"}).make(Place("update", TaskConfig(), 0))
    rule.head.W.zero_()  # type: ignore[union-attr, operator]
    rule.head.b.zero_()  # type: ignore[union-attr, operator]
    optimizer = MetaOptimizer({"update": rule.double()}, None)
    starts = [drawn(100 + i) for i in range(batch)]
    weights = tuple(map(torch.stack, zip(*starts, strict=True)))
    states = optimizer.initial_rule_states(Observation(weights, weights, (), None))
    written = [[Written(W, 2) for W in each] for each in starts]
    for t in range(1, STEPS + 1):
        grads = [drawn(1000 * i + t) for i in range(batch)]
        G = tuple(map(torch.stack, zip(*grads, strict=True)))
        proposal, states = optimizer.propose(Observation(weights, G, (), None), states)
        taken = optimizer.carry_out(weights, proposal, states, None)  # type: ignore[arg-type]
        weights, states = taken.weights, taken.state
        for own, own_grads in zip(written, grads, strict=True):
            for one, one_G in zip(own, own_grads, strict=True):
                one.see(t, one_G)
            total = sum(float(one.v.sum()) for one in own) / sum(one.v.numel() for one in own)
            for one in own:
                one.step(t, total)
    _compare(weights, states["update"], written)


def _compare(weights: tuple[Tensor, ...], state: State, written: list[list[Written]]) -> None:
    averaged = averages(weights, state[AHEAD])
    for b, own in enumerate(written):
        for W, x, one in zip(weights, averaged, own, strict=True):
            torch.testing.assert_close(W[b], one.y, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(x[b], one.x, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3, 8, 9])
def test_packed_products_are_the_products(size: int) -> None:
    """Within a larger tensor, whose other numbers stay."""
    generator = torch.Generator().manual_seed(size)
    whole = torch.zeros(2, symmetric.entries(size) + 2, dtype=torch.float64)
    flat, A = whole[:, 1:-1], torch.zeros(2, size, size, dtype=torch.float64)
    for share in (0.5, 2.0):
        X = torch.randn(2, size, 5, generator=generator, dtype=torch.float64)
        symmetric.add_gram(flat, X, share)
        A += share * X @ X.mT
    torch.testing.assert_close(symmetric.unpacked(flat, size), A)
    assert not whole[:, 0].any()
    assert not whole[:, -1].any()
    # Every number is used, and none twice.
    flat.copy_(torch.arange(1.0, flat.shape[1] + 1).double().expand_as(flat))
    found = symmetric.unpacked(flat, size)[0]
    assert sorted(found.tril()[found.tril() != 0].tolist()) == flat[0].tolist()
