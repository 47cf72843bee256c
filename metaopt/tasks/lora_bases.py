"""Base networks for adapters: a pool of them, pre-trained side by side on upright digits.

Each starts from weights of its own and sees mini-batches of its own, both from the random stream
``Stream.COMMON`` and the number of the base. They are trained in float64 and rounded once, so that
the same pool comes out on every processor, up to a few last bits. A pool is made once a process.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaopt.base.streams import Stream, choices, item_generator
from metaopt.tasks.datasets import Labelled
from metaopt.tasks.images import digits_apart
from metaopt.tasks.lora_networks import Network
from metaopt.tasks.own import fresh_weights

RATE, BATCH = 3e-3, 32
_MEAN, _SQUARE, _SMALL = 0.9, 0.999, 1e-8


@cache
def bases(network: Network, first: int, count: int, steps: int) -> Tensor:
    """Base networks ``first`` .. ``first + count - 1``: their parameters in a row, [count, total].

    Adam at a rate of 3e-3 on mini-batches of 32, from the digits that tasks may show.

    Args:
        network: which network.
        first: the number of the first base.
        count: how many.
        steps: the number of steps of Adam.
    """
    seen, _ = digits_apart()
    net = network.made(seen.X.shape[1], int(seen.y.max()) + 1)
    generators = [item_generator(Stream.COMMON, 0, first + i) for i in range(count)]
    keys = torch.stack([torch.from_numpy(g.integers(2**32, size=2)) for g in generators])
    rows = [torch.cat([W.flatten() for W in fresh_weights(net, g).values()]) for g in generators]
    return _trained(net, torch.stack(rows).double(), keys, seen, steps).float()


def _trained(net: nn.Module, flat: Tensor, keys: Tensor, seen: Labelled, steps: int) -> Tensor:
    """Adam from ``flat`` [P, total], each row a network."""
    names = [name for name, _ in net.named_parameters()]
    shapes = [parameter.shape for parameter in net.parameters()]
    X = seen.X.double()

    def loss(row: Tensor, chosen: Tensor) -> Tensor:
        weights = dict(zip(names, as_shaped(row, shapes), strict=True))
        logits = functional_call(net, weights, (X[chosen],))
        return functional.cross_entropy(logits, seen.y[chosen])

    gradient = vmap(grad(loss))
    mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
    with sdpa_kernel(SDPBackend.MATH):
        for step in range(steps):
            G = gradient(flat, choices(keys, step, BATCH, below=len(X)))
            mean.lerp_(G, 1 - _MEAN)
            square.lerp_(G.square(), 1 - _SQUARE)
            rate = RATE / (1 - _MEAN ** (step + 1))
            spread = (square / (1 - _SQUARE ** (step + 1))).sqrt_().add_(_SMALL)
            flat = flat.addcdiv(mean, spread, value=-rate)
    return flat


def as_shaped(row: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """Views of a row of numbers [total] as tensors of these shapes, one after the other."""
    parts = row.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
