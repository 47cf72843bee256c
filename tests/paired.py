"""Small networks with linear pairs, and what their pairs and gradients are, for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

import metaopt
from metaopt.base.network import Weights, as_matrices
from metaopt.symmetry.maps import Exponential, GroupElement
from metaopt.symmetry.pairs import LinearPairs, pairs_of
from metaopt.tasks.base import Observation
from metaopt.tasks.lora_layers import adapted
from metaopt.teleport.pair_engine import PairMove


def adapters(rank: int = 3) -> nn.Module:
    """A network of three layers with an adapter on each; its factors are not zero."""
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 4))
    return _filled(adapted(net, rank, 2.0, lambda path: True))


class Heads(nn.Module):
    """Self-attention with two heads; queries, keys and values in one tensor, biases with them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (-1, 6)) if x.dim() == 2 else x
        return self.head(self.attention(x, x, x, need_weights=False)[0]).mean(1)


class Chain(nn.Module):
    """Three linear layers with nothing between: two pairs that share the second one's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 3), nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


def _filled(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return net.double()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "adapters": (adapters, 5),
    "heads": (lambda: _filled(Heads()), 24),
    "chain": (lambda: _filled(Chain()), 5),
}
"""How each is made, and the width of its inputs."""


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by path."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def pairs_in(net: nn.Module, width: int) -> LinearPairs:
    """The linear pairs of a network, whose forward does the same with all inputs."""
    listed = metaopt.symmetries(net, example=torch.randn(2, width, dtype=torch.float64))
    known = [replace(symmetry, assumes="") for symmetry in listed]
    found = pairs_of(known, {name: p.shape for name, p in trained(net).items()})
    assert found is not None
    return found


def observed(net: nn.Module, pairs: LinearPairs, x: Tensor) -> Observation:
    """Weights and gradients of the mean of squared outputs."""
    parameters = trained(net)
    loss = net(x).square().mean()
    grads = torch.autograd.grad(loss, list(parameters.values()))
    weights = tuple(as_matrices(p.detach().clone()[None]) for p in parameters.values())
    return Observation(
        weights, tuple(as_matrices(g[None]) for g in grads), (), loss.detach()[None], None, pairs
    )


def write(net: nn.Module, weights: Weights) -> None:
    """Write matrices [1, out, rest] into the trained parameters."""
    with torch.no_grad():
        for p, W in zip(trained(net).values(), weights, strict=True):
            p.copy_(W.reshape(p.shape))


def random_move(pairs: LinearPairs, seed: int = 0, norm: float = 0.4) -> PairMove:
    """A random element for each pair, out of frames I."""
    generator = torch.Generator().manual_seed(seed)
    elements = []
    for width in pairs.widths:
        T = torch.randn(
            width.count, width.size, width.size, generator=generator, dtype=torch.float64
        )
        element = Exponential(4.0)(norm * T)
        elements.append(GroupElement(element.g[None], element.g_inv[None]))
    return PairMove(pairs, tuple(elements), tuple(elements))
