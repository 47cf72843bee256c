"""Layers with low-rank adapters: y = f(x) + scale B A x, f frozen.

References:
    Hu et al., LoRA: low-rank adaptation of large language models (2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """y = f(x) + scale B A x, with a frozen linear layer f and trained factors A and B.

    Of a convolution, A is a convolution of the same kernel, stride and padding into ``rank``
    channels, and B a convolution of kernel 1. B is 0 at first.

    Args:
        base: the layer f, whose parameters are frozen.
        rank: r, the rank of B A.
        scale: the factor of B A; alpha / r in the notation of the reference.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = scale
        self.A: nn.Linear | nn.Conv2d
        self.B: nn.Linear | nn.Conv2d
        if isinstance(base, nn.Linear):
            self.A = nn.Linear(base.in_features, rank, bias=False)
            self.B = nn.Linear(rank, base.out_features, bias=False)
        else:
            names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            kind: dict[str, Any] = {name: getattr(base, name) for name in names}
            self.A = nn.Conv2d(base.in_channels, rank, bias=False, **kind)
            self.B = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        nn.init.normal_(self.A.weight, std=self.A.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """f(x) + scale B A x."""
        return self.base(x) + self.B(self.scale * self.A(x))


def adapted(
    net: nn.Module, rank: int, scale: float, where: Callable[[str], bool] = lambda path: True
) -> nn.Module:
    """Freeze a network, and give its linear and convolutional layers adapters, in place.

    Args:
        net: the network; it is changed.
        rank: the rank of each adapter.
        scale: the factor of each adapter.
        where: of the path of a layer, whether it is adapted; otherwise it is frozen alone.

    Returns:
        The network. Its parameters that are not trained come in the order that they had.
    """
    net.requires_grad_(False)
    for path, layer in list(net.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and where(path):
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, LowRank(layer, rank, scale))
    return net


def fresh_factors(net: nn.Module, generator: np.random.Generator) -> dict[str, Tensor]:
    """The factors that a trajectory starts from: A normal with variance 1 / fan-in, and B = 0.

    Args:
        net: an adapted network.
        generator: the source of randomness.

    Returns:
        The factors by parameter path, float32.
    """
    factors = {}
    for path, parameter in net.named_parameters():
        if parameter.requires_grad:
            drawn = torch.zeros(parameter.shape)
            if path.endswith(".A.weight"):
                normal = generator.standard_normal(parameter.shape, dtype=np.float32)
                drawn = torch.from_numpy(normal) / math.sqrt(parameter[0].numel())
            factors[path] = drawn
    return factors
