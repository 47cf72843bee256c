"""Weights that are read by other ways than their layer's, beside their layer, or written to."""

from __future__ import annotations

import copy
import weakref
from types import SimpleNamespace
from typing import Any

import torch
from odd_forwards import Attention, Call, Convolved, Embedded, Gated, Lora, Mlp, Plain, Residual
from odd_forwards import enter, model, numbers, odd
from torch import Tensor, nn
from torch.nn import functional

GLOBAL: dict[str, Tensor] = {}


def first_layer(s: Any) -> Any:
    return next(m for m in s.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding))


def number(w: Tensor) -> Tensor:
    """Something of a weight that every group changes."""
    return 1 + (w.flatten() * torch.arange(w.numel(), dtype=w.dtype)).sum() / 100


def in_list(s: Any) -> None:
    s.kept = [first_layer(s).weight]


@odd(Mlp, Gated, Attention, Embedded, Lora, prepare=in_list)
def of_a_list(s: Any, h: Tensor) -> Tensor:
    return h * number(s.kept[0])


def in_dict(s: Any) -> None:
    s.kept = {"deep": ({"w": first_layer(s).weight.detach()},)}


@odd(Mlp, Residual, Convolved, prepare=in_dict)
def of_a_dict(s: Any, h: Tensor) -> Tensor:
    return h * number(s.kept["deep"][0]["w"])


def in_closure(s: Any) -> None:
    w = first_layer(s).weight
    s.scale = lambda h: h * number(w)


@odd(Mlp, Gated, prepare=in_closure)
def of_a_closure(s: Any, h: Tensor) -> Tensor:
    return s.scale(h)


def in_default(s: Any) -> None:
    def scale(h: Tensor, w: Tensor = first_layer(s).weight) -> Tensor:
        return h * number(w)

    s.scale = scale


@odd(Mlp, Attention, prepare=in_default)
def of_a_default(s: Any, h: Tensor) -> Tensor:
    return s.scale(h)


def in_global(s: Any) -> None:
    GLOBAL[type(s).__name__] = first_layer(s).weight.data


@odd(Mlp, Plain)
def of_a_global(s: Any, h: Tensor) -> Tensor:
    return h * number(GLOBAL.setdefault(type(s).__name__ + str(id(s)), first_layer(s).weight.data))


def in_namespace(s: Any) -> None:
    s.kept = SimpleNamespace(w=first_layer(s).weight[1:])


@odd(Mlp, Plain, prepare=in_namespace)
def of_a_view(s: Any, h: Tensor) -> Tensor:
    return h * number(s.kept.w)


def in_buffer(s: Any) -> None:
    s.register_buffer("view", first_layer(s).weight.detach().view(-1)[:5], persistent=False)


@odd(Mlp, Residual, prepare=in_buffer)
def of_a_buffer(s: Any, h: Tensor) -> Tensor:
    return h * number(s.view)


def in_numpy(s: Any) -> None:
    s.array = first_layer(s).weight.detach().numpy()


@odd(Mlp, Gated, prepare=in_numpy)
def of_an_array(s: Any, h: Tensor) -> Tensor:
    return h * float(s.array[0].sum())


def in_reference(s: Any) -> None:
    s.reference = weakref.ref(first_layer(s).weight)


@odd(Mlp, Plain, prepare=in_reference)
def of_a_reference(s: Any, h: Tensor) -> Tensor:
    return h * number(s.reference())


def in_method(s: Any) -> None:
    s.scale = first_layer(s).weight.mul


@odd(Mlp, Plain, prepare=in_method)
def of_a_method(s: Any, h: Tensor) -> Tensor:
    return h * number(s.scale(2.0))


def in_module_list(s: Any) -> None:
    s.plain_list = [first_layer(s)]


@odd(Mlp, Residual, prepare=in_module_list)
def of_a_module_in_a_list(s: Any, h: Tensor) -> Tensor:
    return h + s.plain_list[0].bias


def in_copy(s: Any) -> None:
    s.frozen_copy = [copy.deepcopy(first_layer(s))]


@odd(Mlp, Plain, prepare=in_copy)
def of_a_copy(s: Any, h: Tensor) -> Tensor:
    return h + s.frozen_copy[0].bias


def in_storage(s: Any) -> None:
    s.memory = first_layer(s).weight.untyped_storage()


@odd(Mlp, prepare=in_storage)
def of_storage(s: Any, h: Tensor) -> Tensor:
    w = torch.empty(0, dtype=torch.float64).set_(s.memory)
    return h * w.sum()


@odd(Mlp, Gated)
def by_name(s: Any, h: Tensor) -> Tensor:
    return h * number(next(iter(s.state_dict().values())))


@odd(Mlp, Plain)
def by_item(s: Any, h: Tensor) -> Tensor:
    return h if first_layer(s).weight[0, 0].item() > 0.1 else 2 * h


@odd(Mlp, Residual)
def by_vector(s: Any, h: Tensor) -> Tensor:
    return h * nn.utils.parameters_to_vector(s.parameters()).std()


@odd(Mlp, Plain)
def by_vars(s: Any, h: Tensor) -> Tensor:
    return h * number(s._modules["fc1"]._parameters["weight"])


@odd(Mlp, Plain)
def pointer(s: Any, h: Tensor) -> Tensor:
    return h * (1 if s.fc1.weight.data_ptr() else 2)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.prepare()

    def prepare(self) -> None:
        """Make what the forward needs."""

    def hidden(self, x: Tensor) -> Tensor:
        return functional.relu(self.fc1(x))


@model("features")
class TiedTransposed(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.hidden(x), self.fc1.weight.t())


@model("features")
class TiedByMatmul(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x) @ self.fc1.weight + x


@model("features")
class UsedTwice(TwoLayers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc2(self.hidden(x)), self.fc2(self.hidden(x.flip(0)))


@model("features")
class Penalised(TwoLayers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc2(self.hidden(x)), sum((p**2).sum() for p in self.parameters())  # type: ignore[return-value]


@model("features")
class NormReturned(TwoLayers):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"y": self.fc2(self.hidden(x)), "norm": self.fc1.weight.norm().item()}


@model("features")
class OrthogonalPenalty(TwoLayers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = self.fc1.weight
        return self.fc2(self.hidden(x)), (w @ w.T - torch.eye(6, dtype=w.dtype)).pow(2).sum()


@model("features")
class SecondNorm(TwoLayers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc2(self.hidden(x)), self.fc1.weight.norm(dim=1) * self.fc2.weight.norm(dim=0)


@model("features")
class ProductReturned(TwoLayers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc2(self.fc1(x)), self.fc2.weight @ self.fc1.weight


@model("features")
class Standardised(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        w = self.fc1.weight
        w = (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-6)
        return self.fc2(functional.relu(functional.linear(x, w, self.fc1.bias)))


@model("features")
class Clipped(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        w = self.fc1.weight.clamp(-0.3, 0.3)
        return self.fc2(functional.relu(functional.linear(x, w, self.fc1.bias)))


@model("features")
class ClippedInPlace(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc1.weight.clamp_(-0.3, 0.3)
        return self.fc2(self.hidden(x))


@model("features")
class Renormalised(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        self.fc1.weight.data.div_(self.fc1.weight.data.norm(dim=1, keepdim=True))
        return self.fc2(self.hidden(x))


@model("features")
class Fast(TwoLayers):
    """Averages its weights as it runs (a target network)."""

    def prepare(self) -> None:
        self.slow = copy.deepcopy(self.fc1).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self.slow.weight.lerp_(self.fc1.weight, 0.1)
        return self.fc2(self.hidden(x)), self.slow(x)


@model("features")
class Ternary(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        w = self.fc1.weight
        w = w + (w.sign() - w).detach()
        return self.fc2(functional.relu(functional.linear(x, w, self.fc1.bias)))


@model("features")
class Masked(TwoLayers):
    def prepare(self) -> None:
        self.register_buffer("mask", torch.ones(6, 4).tril())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(functional.linear(x, self.fc1.weight * self.mask)))


@model("features")
class Functional(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        doubled = {k: 2 * v for k, v in self.fc1.named_parameters()}
        return self.fc2(functional.relu(torch.func.functional_call(self.fc1, doubled, (x,))))


@model("features")
class Swapped(TwoLayers):
    """Calls a layer with the weights of another."""

    def prepare(self) -> None:
        self.extra = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.func.functional_call(self.fc1, {"weight": self.extra}, (x,))
        return self.fc2(torch.tanh(h)) + self.fc2(torch.tanh(self.fc1(x)))


@model("features")
class Detached(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        w = self.fc1.weight.detach()
        return self.fc2(functional.relu(functional.linear(x, w, self.fc1.bias.data)))


@model("features")
class Unfolded(TwoLayers):
    """Reads rows of its weight one by one."""

    def forward(self, x: Tensor) -> Tensor:
        rows = [x @ self.fc1.weight[i] for i in range(6)]
        return self.fc2(torch.stack(rows, -1))


@model("features")
class Chunked(TwoLayers):
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
class Shared(TwoLayers):
    def prepare(self) -> None:
        self.again = self.fc1
        self.fc3 = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc2(self.hidden(x)), self.fc3(torch.tanh(self.again(x)))


@model("features")
class SharedWeight(TwoLayers):
    def prepare(self) -> None:
        self.other, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.other.weight = self.fc1.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.hidden(x)) + self.fc3(functional.relu(self.other(x)))


@model("features")
class SharedBias(TwoLayers):
    def prepare(self) -> None:
        self.other = nn.Linear(4, 6)
        self.other.bias = self.fc1.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.hidden(x) * torch.sigmoid(self.other(x)))


@model("features")
class SharedMemory(TwoLayers):
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
class SameLayerManyTimes(TwoLayers):
    def prepare(self) -> None:
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor, times: int = 2) -> Tensor:
        h = self.fc1(x)
        for _ in range(times):
            h = h + torch.tanh(self.mix(h))
        return self.fc2(h)
