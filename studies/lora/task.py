"""The test tasks: networks pre-trained on digits, and factors that adapt them to shifted digits.

    y = W x + b + scale B A x,   W [out, in], A [rank, in], B [out, rank]

W and b are pre-trained on upright digits and frozen; B is 0 and A normal with variance 1 / in. The
digits are turned, inverted or both. Each seed has a base network, factors and mini-batches of its
own. A third of the images is kept apart: no network is trained on it, and losses are on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.base.errors import UserError
from metaopt.base.streams import Stream, generator, item_generator
from metaopt.tasks.datasets import digits
from metaopt.tasks.own import fresh_weights

SLOPE = 0.1
CLASSES = 10
SEED = 16
_STRIDE = 2
"""Items of a stream for each seed of the study: one for the base network, one for the factors."""


def _turned(images: Tensor, times: int = 1) -> Tensor:
    return torch.rot90(images, times, (1, 2))


def _sheared(images: Tensor) -> Tensor:
    """Row i is rolled by i pixels."""
    rows = [images[:, i].roll(i, 1) for i in range(images.shape[1])]
    return torch.stack(rows, 1)


def _shuffled(images: Tensor) -> Tensor:
    """All pixels in one random order."""
    order = generator(Stream.SPLIT, seed=SEED).permutation(images[0].numel())
    return images.flatten(1)[:, torch.from_numpy(order)].view_as(images)


SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned_inverted": lambda images: 1 - _turned(images),
    "turned": _turned,
    "turned_back_inverted": lambda images: 1 - _turned(images, 3),
    "sheared": _sheared,
    "shuffled": _shuffled,
}
"""What is done to images [N, 8, 8]; rules are meta-trained on none of it."""


@dataclass(frozen=True)
class Setting:
    """What a test task is.

    Attributes:
        width: hidden units of each hidden layer.
        hidden: the number of hidden layers.
        rank: of the factors of every layer.
        shift: the name of what is done to the images, in ``SHIFTS``.
        scale: of the product of the factors.
        batch: images in a mini-batch.
        steps: of pre-training, by Adam.
        rate: of pre-training.
    """

    width: int = 96
    hidden: int = 2
    rank: int = 8
    shift: str = "turned_inverted"
    scale: float = 2.0
    batch: int = 64
    steps: int = 800
    rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.shift not in SHIFTS:
            raise UserError(f"shift: found {self.shift!r}, expected one of {', '.join(SHIFTS)}")
        if min(self.width, self.hidden, self.rank) < 1:
            raise UserError(
                f"width, hidden, rank: found {self.width}, {self.hidden}, {self.rank}, expected "
                f"at least 1 of each"
            )

    @property
    def sizes(self) -> list[int]:
        """Of the inputs, the hidden layers and the outputs."""
        return [64, *[self.width] * self.hidden, CLASSES]


@dataclass(frozen=True)
class Images:
    """Shifted images: those to adapt to, and those that are kept apart."""

    X: Tensor  # [N, 64]
    y: Tensor  # [N]
    X_apart: Tensor  # [N', 64]
    y_apart: Tensor  # [N']


def images(shift: Callable[[Tensor], Tensor] | None = None) -> Images:
    """The digits, two thirds and a third of them as in ``metaopt.tasks.images``, upright or not."""
    found = digits()
    X = found.X if shift is None else shift(found.X.reshape(-1, 8, 8)).reshape(-1, 64)
    order = torch.from_numpy(generator(Stream.SPLIT, seed=0).permutation(len(X)))
    first, last = order.split([2 * len(order) // 3, len(order) - 2 * len(order) // 3])
    return Images(X[first], found.y[first], X[last], found.y[last])


def batches(count: int, steps: int, batch: int, seed: int) -> Tensor:
    """Row numbers of the mini-batches of a seed, drawn with replacement: int64 [steps, batch].

    The first steps are the same whatever the number of steps.
    """
    draws = item_generator(Stream.MINIBATCH, SEED, seed)
    return torch.from_numpy(draws.integers(0, count, size=(steps, batch)))


class LoRALinear(nn.Module):
    """y = W x + b + scale B A x, with W and b frozen.

    Args:
        base: the layer that is adapted.
        rank: rows of A and columns of B.
        scale: factor on the product.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N, out] for inputs [N, in]."""
        return self.base(x) + self.scale * self.lora_B(self.lora_A(x))


@dataclass(frozen=True)
class Task:
    """One seed: the frozen layers (W, b) and the factors (A, B) before the first step."""

    setting: Setting
    frozen: list[tuple[Tensor, Tensor]]
    factors: list[tuple[Tensor, Tensor]]

    def model(self) -> nn.Sequential:
        """The network with LoRA layers, as a user has it; the trainable parameters are A, B, .."""
        network = _network(self.setting.sizes)
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        layers: list[nn.Module] = []
        for base, (W, b), (A, B) in zip(linear, self.frozen, self.factors, strict=True):
            base.load_state_dict({"weight": W, "bias": b})
            layer = LoRALinear(base, self.setting.rank, self.setting.scale)
            layer.lora_A.load_state_dict({"weight": A})
            layer.lora_B.load_state_dict({"weight": B})
            layers += [layer, nn.LeakyReLU(SLOPE)]
        return nn.Sequential(*layers[:-1])


def _network(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers[:-1])


def task(setting: Setting, seed: int) -> Task:
    """The task of a seed; pre-training takes a second."""
    network = _network(setting.sizes)
    draws = item_generator(Stream.TEST, SEED, _STRIDE * seed)
    network.load_state_dict(fresh_weights(network, draws))
    upright = images()
    optimizer = torch.optim.Adam(network.parameters(), setting.rate)
    rows = draws.integers(0, len(upright.y), size=(setting.steps, setting.batch))
    for chosen in torch.from_numpy(rows):
        optimizer.zero_grad()
        functional.cross_entropy(network(upright.X[chosen]), upright.y[chosen]).backward()
        optimizer.step()
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    draws = item_generator(Stream.TEST, SEED, _STRIDE * seed + 1)
    factors = []
    for layer in linear:
        A = torch.from_numpy(draws.standard_normal((setting.rank, layer.in_features))).float()
        B = torch.zeros(layer.out_features, setting.rank)
        factors.append((A / layer.in_features**0.5, B))
    frozen = [(layer.weight.detach(), layer.bias.detach()) for layer in linear]
    return Task(setting, frozen, factors)


def pairs_of(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(A, B) of each LoRA layer of a model, or of each layer of a stack."""
    if hasattr(model, "pairs"):
        return model.pairs  # type: ignore[return-value]
    layers = [layer for layer in model.modules() if isinstance(layer, LoRALinear)]
    return [(layer.lora_A.weight, layer.lora_B.weight) for layer in layers]


def losses(model: nn.Module, X: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy: of images [N, n] one number, of a stack's [M, N, n] one for each."""
    logits = model(X).movedim(-1, 1)
    return functional.cross_entropy(logits, y, reduction="none").mean(-1)
