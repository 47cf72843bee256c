"""Small models, each with a symmetry of one kind, for what is conserved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Units(nn.Module):
    """b(act(a x))."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x)))


class Convolutions(nn.Module):
    """A convolution, a grouped one and a layer over positions, with ReLU units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 2, groups=2)
        self.c = nn.Linear(6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.b(functional.relu(self.a(x))))
        return self.c(x.flatten(1))


class GatedUnits(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Heads(nn.Module):
    """Attention with 4 heads of width 2; ``shared`` of them read the same keys and values."""

    def __init__(self, shared: int = 1) -> None:
        super().__init__()
        few = 8 // shared
        self.q, self.k, self.v = nn.Linear(3, 8), nn.Linear(3, few), nn.Linear(3, few)
        self.o, self.shared = nn.Linear(8, 3), shared

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (z.repeat_interleave(self.shared, dim=1) for z in (k, v))
        mixed = (q @ k.mT / 2**0.5).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).flatten(2))


class Normalised(nn.Module):
    """b(norm(a x)), without eps."""

    def __init__(self, centred: bool) -> None:
        super().__init__()
        self.a, self.b, self.centred = nn.Linear(3, 4), nn.Linear(4, 2), centred

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.centred:
            return self.b(functional.layer_norm(h, (4,), eps=0.0))
        return self.b(functional.rms_norm(h, (4,), eps=0.0))


class Classes(nn.Module):
    """log softmax(a x)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).log_softmax(-1)


class Stream(nn.Module):
    """x + fc2(gelu(fc1(norm x))) with RMSNorms without gains, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + self.fc2(functional.gelu(self.fc1(functional.rms_norm(x, (4,)))))
        return self.out(functional.rms_norm(x, (4,)))


def linear_layers() -> nn.Module:
    """A pair of linear layers with average pooling in between."""
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def lora() -> nn.Module:
    """A ReLU network whose second layer has an adapter of rank 2, by ``peft``."""
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4))
    config = LoraConfig(r=2, target_modules=["2"], init_lora_weights=False)
    adapted: Any = get_peft_model(model, config)
    return adapted.base_model.model  # type: ignore[no-any-return]


def made(make: Callable[[], nn.Module]) -> Any:
    """The model in float64, with weights of ordinary size."""
    torch.manual_seed(0)
    model = make().double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / 2)
    return model
