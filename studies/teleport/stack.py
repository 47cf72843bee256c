"""Many bias-free networks side by side: one matrix [R, out, in] a layer, gradients by hand.

Run r of R has the images of group r // (R / B): with B = 1 all runs read the same mini-batch, so
that the first layer, which has nearly all the weights, is one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from metaopt.base.streams import Stream, item_generator

Layers = list[Tensor]

SLOPE = 0.1
"""Of LeakyReLU where its argument is negative."""


def initial(sizes: Sequence[int], seeds: Sequence[int]) -> Layers:
    """Weights uniform in +-1 / sqrt(in), float32 [seeds, out, in] for each layer.

    A seed's weights are the same in a stack of any size.
    """
    layers = []
    for i, (n, m) in enumerate(pairwise(sizes)):
        draws = (item_generator(Stream.INITIALISATION, seed, i).random((m, n)) for seed in seeds)
        W = torch.stack([torch.from_numpy(2 * one - 1) for one in draws])
        layers.append((W / n**0.5).float())
    return layers


def leaky(z: Tensor) -> Tensor:
    """s(z) = max(z, 0.1 z)."""
    return functional.leaky_relu(z, SLOPE)


def slope(z: Tensor) -> Tensor:
    """s'(z)."""
    return torch.full_like(z, SLOPE).masked_fill_(z > 0, 1.0)


def first(W: Tensor, x: Tensor) -> Tensor:
    """W x of the first layer: W [R, k, n], x [B, n, S] -> [R, k, S]."""
    runs, k, n = W.shape
    return (W.reshape(len(x), -1, n) @ x).view(runs, k, -1)


def forward(layers: Layers, x: Tensor) -> Layers:
    """What each layer puts out before the activation, the last one's are logits: x [B, n, S]."""
    z = [first(layers[0], x)]
    for W in layers[1:]:
        z.append(W @ leaky(z[-1]))
    return z


def losses(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each run: logits [R, C, S], y [B, S] -> [R]."""
    groups = logits.view(len(y), -1, *logits.shape[1:]).log_softmax(-2)
    chosen = groups.gather(-2, y[:, None, None].expand(-1, groups.shape[1], -1, -1))
    return -chosen.mean((-2, -1)).flatten()


def mean_losses(layers: Layers, x: Tensor, y: Tensor, at_once: int = 500) -> Tensor:
    """The same of networks on many images, some at a time: x [1, n, N], y [1, N] -> [R]."""
    total = torch.zeros(len(layers[0]), dtype=layers[0].dtype)
    for part, labels in zip(x.split(at_once, -1), y.split(at_once, -1), strict=True):
        total += losses(forward(layers, part)[-1], labels) * labels.shape[-1]
    return total / y.shape[-1]


def gradients(layers: Layers, x: Tensor, y: Tensor) -> Layers:
    """Of each run's mean cross-entropy: x [B, n, S], y [B, S] -> [R, out, in] for each layer."""
    z = forward(layers, x)
    p = z[-1].softmax(-2).view(len(y), -1, *z[-1].shape[1:])
    p.scatter_add_(
        -2,
        y[:, None, None].expand(-1, p.shape[1], -1, -1),
        torch.full((1, 1, 1, 1), -1.0, dtype=p.dtype).expand(*p.shape[:2], 1, p.shape[3]),
    )
    d = p.div_(y.shape[-1]).view_as(z[-1])
    found = []
    for W, before in zip(reversed(layers[1:]), reversed(z[:-1]), strict=True):
        found.append(d @ leaky(before).mT)
        d = (W.mT @ d).mul_(slope(before))
    runs, k, n = layers[0].shape
    found.append((d.reshape(len(x), -1, d.shape[-1]) @ x.mT).view(runs, k, n))
    return found[::-1]


def squared_norm(tensors: Layers) -> Tensor:
    """Over all layers, of each run: [R]."""
    return sum(((T * T).sum((-2, -1)) for T in tensors), torch.zeros(()))
