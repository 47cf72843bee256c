"""Layers that are tied, shared, reused or changed by the forward itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from odd_forwards import Call, Two, enter, model, numbers
from torch import Tensor, nn
from torch.nn import functional


@model("features")
class TiedTransposed(Two):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.hidden(x), self.fc1.weight.t())


@model("features")
class TiedByMatmul(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x) @ self.fc1.weight + x


@model("features")
class UsedTwice(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc2(self.hidden(x)), self.fc2(self.hidden(x.flip(0)))


@model("features")
class Penalised(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc2(self.hidden(x)), sum((p**2).sum() for p in self.parameters())  # type: ignore[return-value]


@model("features")
class NormReturned(Two):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"y": self.fc2(self.hidden(x)), "norm": self.fc1.weight.norm().item()}


@model("features")
class OrthogonalPenalty(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = self.fc1.weight
        return self.fc2(self.hidden(x)), (w @ w.T - torch.eye(6, dtype=w.dtype)).pow(2).sum()


@model("features")
class SecondNorm(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc2(self.hidden(x)), self.fc1.weight.norm(dim=1) * self.fc2.weight.norm(dim=0)


@model("features")
class ProductReturned(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc2(self.fc1(x)), self.fc2.weight @ self.fc1.weight


@model("features")
class Standardised(Two):
    def forward(self, x: Tensor) -> Tensor:
        w = self.fc1.weight
        w = (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-6)
        return self.fc2(functional.relu(functional.linear(x, w, self.fc1.bias)))


@model("features")
class Clipped(Two):
    def forward(self, x: Tensor) -> Tensor:
        w = self.fc1.weight.clamp(-0.3, 0.3)
        return self.fc2(functional.relu(functional.linear(x, w, self.fc1.bias)))


@model("features")
class ClippedInPlace(Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc1.weight.clamp_(-0.3, 0.3)
        return self.fc2(self.hidden(x))


@model("features")
class Renormalised(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.fc1.weight.data.div_(self.fc1.weight.data.norm(dim=1, keepdim=True))
        return self.fc2(self.hidden(x))


@model("features")
class Fast(Two):
    """Averages its weights as it runs (a target network)."""

    def prepare(self) -> None:
        self.slow = copy.deepcopy(self.fc1).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self.slow.weight.lerp_(self.fc1.weight, 0.1)
        return self.fc2(self.hidden(x)), self.slow(x)


@model("features")
class Ternary(Two):
    def forward(self, x: Tensor) -> Tensor:
        w = self.fc1.weight
        w = w + (w.sign() - w).detach()
        return self.fc2(functional.relu(functional.linear(x, w, self.fc1.bias)))


@model("features")
class Masked(Two):
    def prepare(self) -> None:
        self.register_buffer("mask", torch.ones(6, 4).tril())

    def forward(self, x: Tensor) -> Tensor:
        w = self.fc1.weight * self.get_buffer("mask")
        return self.fc2(functional.relu(functional.linear(x, w)))


@model("features")
class Functional(Two):
    def forward(self, x: Tensor) -> Tensor:
        doubled = {k: 2 * v for k, v in self.fc1.named_parameters()}
        return self.fc2(functional.relu(torch.func.functional_call(self.fc1, doubled, (x,))))


@model("features")
class Swapped(Two):
    """Calls a layer with the weights of another."""

    def prepare(self) -> None:
        self.extra = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.func.functional_call(self.fc1, {"weight": self.extra}, (x,))
        return self.fc2(torch.tanh(h)) + self.fc2(torch.tanh(self.fc1(x)))


@model("features")
class Detached(Two):
    def forward(self, x: Tensor) -> Tensor:
        w = self.fc1.weight.detach()
        return self.fc2(functional.relu(functional.linear(x, w, self.fc1.bias.data)))


@model("features")
class Unfolded(Two):
    """Reads rows of its weight one by one."""

    def forward(self, x: Tensor) -> Tensor:
        rows = [x @ self.fc1.weight[i] for i in range(6)]
        return self.fc2(torch.stack(rows, -1))


@model("features")
class Chunked(Two):
    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1.weight.chunk(2)
        return self.fc2(torch.cat([torch.tanh(x @ a.T), functional.relu(x @ b.T)], -1))


@model("features")
class Flat(nn.Module):
    """All weights in one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.randn(42))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.flat[:24].view(6, 4), self.flat[24:].view(3, 6)
        return functional.relu(x @ first.T) @ second.T


@model("features")
class Shared(Two):
    def prepare(self) -> None:
        self.again = self.fc1
        self.fc3 = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc2(self.hidden(x)), self.fc3(torch.tanh(self.again(x)))


@model("features")
class SharedWeight(Two):
    def prepare(self) -> None:
        self.other, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.other.weight = self.fc1.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.hidden(x)) + self.fc3(functional.relu(self.other(x)))


@model("features")
class SharedBias(Two):
    def prepare(self) -> None:
        self.other = nn.Linear(4, 6)
        self.other.bias = self.fc1.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.hidden(x) * torch.sigmoid(self.other(x)))


@model("features")
class SharedMemory(Two):
    """Two parameters of one memory."""

    def prepare(self) -> None:
        self.other, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.other.weight = nn.Parameter(self.fc1.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.hidden(x)) + self.fc3(functional.relu(self.other(x)))


@model("tokens")
class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        return self.head(h + torch.tanh(self.mix(h)))


def tied_plain() -> nn.Module:
    table, head = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
    head.weight = table.weight
    return nn.Sequential(table, head)


enter("tied plain", tied_plain, "tokens")
enter("recurrent", lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), "features")


@model("features", Call((numbers(4, 4), 3)))
class SameLayerManyTimes(Two):
    def prepare(self) -> None:
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor, times: int = 2) -> Tensor:
        h = self.fc1(x)
        for _ in range(times):
            h = h + torch.tanh(self.mix(h))
        return self.fc2(h)
