"""The base networks of ``lora``: each reads images [N, n] and returns logits [N, classes].

Those without adapters are plain modules. ``ADAPTED`` says which of their layers get one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from metaopt.base.errors import UserError
from metaopt.tasks.attention_networks import TokenTransformer
from metaopt.tasks.image_networks import SLOPE

HEADS = 2
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(SLOPE),
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class Network:
    """Which base network.

    Attributes:
        kind: ``mlp``, ``convolutions`` or ``transformer``.
        width: the number of hidden units; of channels of the last convolution; of a token.
        layers: the number of linear layers of an MLP, of convolutions, or of blocks.
        activation: one of ``ACTIVATIONS``, between the layers of MLPs and convolutions.

    Raises:
        UserError: if there is no such network.
    """

    kind: str
    width: int
    layers: int
    activation: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"network: found {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.activation not in ACTIVATIONS:
            expected = ", ".join(ACTIVATIONS)
            raise UserError(f"activation: found {self.activation!r}, expected one of {expected}")
        if self.layers < 1:
            raise UserError(f"layers: found {self.layers}, expected at least 1")
        if self.kind == "transformer" and self.width % HEADS:
            raise UserError(f"width: found {self.width}, expected a multiple of {HEADS} heads")

    def made(self, inputs: int, classes: int) -> nn.Module:
        """The network, without adapters, for images of ``inputs`` pixels."""
        return KINDS[self.kind](self, inputs, classes)

    def adapts(self, path: str) -> bool:
        """Whether the layer at this path gets an adapter."""
        return self.kind != "transformer" or path.rpartition(".")[2] in ("q", "v", "up", "down")


def _mlp(network: Network, inputs: int, classes: int) -> nn.Module:
    widths = [inputs, *[network.width] * (network.layers - 1)]
    hidden = [
        part
        for fan_in, fan_out in pairwise(widths)
        for part in (nn.Linear(fan_in, fan_out), ACTIVATIONS[network.activation]())
    ]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], classes))


def _convolutions(network: Network, inputs: int, classes: int) -> nn.Module:
    """Convolutions of kernel 3, the first two with stride 2, and a linear layer."""
    side = math.isqrt(inputs)
    parts: list[nn.Module] = [nn.Unflatten(1, (1, side, side))]
    channels = 1
    for layer in range(network.layers):
        stride = 2 if layer < 2 else 1
        wanted = network.width if layer == network.layers - 1 else max(1, network.width // 2)
        parts.append(nn.Conv2d(channels, wanted, 3, stride=stride, padding=1))
        parts.append(ACTIVATIONS[network.activation]())
        channels, side = wanted, (side + stride - 1) // stride
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels * side**2, classes))


def _transformer(network: Network, inputs: int, classes: int) -> nn.Module:
    """A transformer over the rows of an image."""
    side = math.isqrt(inputs)
    rows = nn.Unflatten(1, (side, side))
    blocks = TokenTransformer(side, side, network.width, HEADS, network.layers, classes)
    return nn.Sequential(rows, blocks)


KINDS: dict[str, Callable[[Network, int, int], nn.Module]] = {
    "mlp": _mlp,
    "convolutions": _convolutions,
    "transformer": _transformer,
}
