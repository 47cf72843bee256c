"""Learned rules as plain arrays, so that a plain loop starts from the package's own weights.

Names are those of the checkpoint format: W_x [4 h, inputs], W_h [4 h, h] and b [4 h] of each cell,
gates in the order i, f, o, u, and the head's W [outputs, h] and b.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig


@dataclass(frozen=True)
class Network:
    """One learned rule.

    Attributes:
        W_x: on the input of each cell.
        W_h: on the hidden state of each cell.
        b: of each cell.
        head_weight: of the head.
        head_bias: of the head.
    """

    W_x: list[Tensor]
    W_h: list[Tensor]
    b: list[Tensor]
    head_weight: Tensor
    head_bias: Tensor


def networks(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Network]:
    """The rules ``names`` out of tensors named as in a checkpoint (weights, or gradients)."""

    def layers(prefix: str) -> list[Tensor]:
        count = sum(key.startswith(f"{prefix}.") for key in tensors)
        return [tensors[f"{prefix}.{layer}"].detach() for layer in range(count)]

    found = {}
    for name in names:
        own = f"networks.{name}"
        found[name] = Network(
            W_x=layers(f"{own}.lstm.W_x"),
            W_h=layers(f"{own}.lstm.W_h"),
            b=layers(f"{own}.lstm.b"),
            head_weight=tensors[f"{own}.head.W"].detach(),
            head_bias=tensors[f"{own}.head.b"].detach(),
        )
    return found


def initial(config: TrainConfig) -> dict[str, Network]:
    """The rules that meta-training of ``config`` begins with."""
    state = meta_optimizer(config).state_dict()
    return networks(state, config.rules.by_name())


def load_cell(module: nn.Module, network: Network, layer: int, suffix: str = "") -> None:
    """Copy one cell into torch's own, whose gates are ordered i, f, u, o.

    Its second bias is held at zero, so that a step of Adam moves both networks alike.

    Args:
        module: ``nn.LSTM`` or ``nn.LSTMCell``.
        network: to copy from.
        layer: the cell in it.
        suffix: of the parameters' names: ``_l0`` .. in ``nn.LSTM``, none in ``nn.LSTMCell``.
    """

    def reordered(p: Tensor) -> Tensor:
        i, f, o, u = p.chunk(4)
        return torch.cat([i, f, u, o])

    b = reordered(network.b[layer])
    values = {
        "weight_ih": reordered(network.W_x[layer]),
        "weight_hh": reordered(network.W_h[layer]),
        "bias_ih": b,
        "bias_hh": torch.zeros_like(b),
    }
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name + suffix).copy_(value)
    module.get_parameter("bias_hh" + suffix).requires_grad_(False)


def linear(network: Network) -> nn.Linear:
    """The head as torch's own layer."""
    outputs, hidden = network.head_weight.shape
    made = nn.Linear(
        hidden, outputs, dtype=network.head_weight.dtype, device=network.head_weight.device
    )
    with torch.no_grad():
        made.weight.copy_(network.head_weight)
        made.bias.copy_(network.head_bias)
    return made


def adam(config: TrainConfig, modules: Mapping[str, nn.Module]) -> torch.optim.Adam:
    """Adam with a learning rate for each network, as the configuration has it."""
    rates = {name: rule.outer_lr for name, rule in config.rules.by_name().items()}
    return torch.optim.Adam(
        [{"params": modules[name].parameters(), "lr": rate} for name, rate in rates.items()]
    )
