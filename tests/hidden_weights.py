"""Models whose ``forward`` reaches the first weight by another way than its attribute."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

GLOBAL: dict[str, Any] = {}


class Pair(nn.Module):
    """fc2(relu(fc1(x))) and something more that depends on the first weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1 = nn.Linear(4, 6)
        self.fc2 = nn.Linear(6, 4)
        self.prepare()

    def prepare(self) -> None:
        """What a model keeps of its weight beside."""

    def more(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(x))) + self.more(x)


def _summed(x: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(x, weight).sum(-1, keepdim=True)


class InList(Pair):
    def prepare(self) -> None:
        self.kept = [self.fc1.weight]

    def more(self, x: Tensor) -> Tensor:
        return _summed(x, self.kept[0])


class InDictionary(Pair):
    def prepare(self) -> None:
        self.kept = {"weight": self.fc1.weight.data}

    def more(self, x: Tensor) -> Tensor:
        return _summed(x, self.kept["weight"])


class InObject(Pair):
    def prepare(self) -> None:
        self.kept = types.SimpleNamespace(weight=self.fc1.weight)

    def more(self, x: Tensor) -> Tensor:
        return _summed(x, self.kept.weight)


class InArray(Pair):
    def prepare(self) -> None:
        self.kept = self.fc1.weight.detach().numpy()

    def more(self, x: Tensor) -> Tensor:
        return x * float(self.kept.sum())


class InPartial(Pair):
    def prepare(self) -> None:
        self.kept = partial(functional.linear, weight=self.fc1.weight)

    def more(self, x: Tensor) -> Tensor:
        return self.kept(x).sum(-1, keepdim=True)


class InFunction(Pair):
    def prepare(self) -> None:
        self.kept = lambda x: x * self.fc1.weight.detach().norm()

    def more(self, x: Tensor) -> Tensor:
        return self.kept(x)


class InGlobal(Pair):
    def prepare(self) -> None:
        GLOBAL["weight"] = self.fc1.weight

    def more(self, x: Tensor) -> Tensor:
        return x * GLOBAL["weight"].detach().norm()


class LayerInGlobal(Pair):
    def prepare(self) -> None:
        GLOBAL["layer"] = self.fc1

    def more(self, x: Tensor) -> Tensor:
        return GLOBAL["layer"](x).sum(-1, keepdim=True)


class OnClass(Pair):
    weight: Tensor

    def prepare(self) -> None:
        type(self).weight = self.fc1.weight

    def more(self, x: Tensor) -> Tensor:
        return x * type(self).weight.detach().norm()


class ByWeakReference(Pair):
    def prepare(self) -> None:
        self.kept = weakref.ref(self.fc1)

    def more(self, x: Tensor) -> Tensor:
        layer = self.kept()
        assert layer is not None
        return _summed(x, layer.weight)


class ByProperty(Pair):
    @property
    def weight(self) -> Tensor:
        return self.fc1.weight

    def more(self, x: Tensor) -> Tensor:
        return _summed(x, self.weight)


class ByStateDict(Pair):
    def more(self, x: Tensor) -> Tensor:
        return x * self.state_dict()["fc1.weight"].norm()


class ByCall(Pair):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + self.fc1.weight.sum()


class ByMode(Pair):
    """Keeps a number of the weight when it is set to evaluation."""

    kept = 0.0

    def train(self, mode: bool = True) -> ByMode:
        super().train(mode)
        self.kept = 0.0 if mode else float(self.fc1.weight.detach().sum())
        return self

    def more(self, x: Tensor) -> Tensor:
        return x * self.kept


class ByCatching(Pair):
    """Goes another way where it is traced."""

    def more(self, x: Tensor) -> Tensor:
        try:
            return x + self.fc1.weight.sum() if x.sum() < 1e9 else x
        except Exception:
            return x


class ByAsking(Pair):
    """Goes another way for a tensor than for what stands in for one."""

    def more(self, x: Tensor) -> Tensor:
        return _summed(x, self.fc1.weight) if isinstance(x, Tensor) else x


class Clipping(Pair):
    """Bounds its weights at each call."""

    def more(self, x: Tensor) -> Tensor:
        for parameter in self.parameters():
            parameter.data.clamp_(-0.5, 0.5)
        return x


class Wrapped(Pair):
    """Calls a function that traces do not enter."""

    def prepare(self) -> None:
        GLOBAL["wrapped"] = self.fc1.weight

    def more(self, x: Tensor) -> Tensor:
        return wrapped(x)


def wrapped(x: Tensor) -> Tensor:
    return x * GLOBAL["wrapped"].norm()


fx.wrap("wrapped")


class Opaque(nn.Module):
    """Control flow that depends on data; reads a weight, and calls a layer."""

    def __init__(self, weight: Tensor, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.kept = [weight]
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        more = 0 if self.layer is None else self.layer(x).sum()
        return x + self.kept[0].sum() + more


class Shared(Pair):
    """The first layer is also a part of a module that cannot be traced."""

    def prepare(self) -> None:
        self.opaque = Opaque(torch.zeros(1), self.fc1)

    def more(self, x: Tensor) -> Tensor:
        return self.opaque(x)


class Parametrisation(nn.Module):
    """Of another layer, by the first weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.kept = [weight]

    def forward(self, X: Tensor) -> Tensor:
        return X + self.kept[0].sum()


def in_closure() -> nn.Module:
    model = Pair()
    weight = model.fc1.weight

    class InClosure(Pair):
        def more(self, x: Tensor) -> Tensor:
            return x * weight.detach().norm()

    model.__class__ = InClosure
    return model


def _with_tail(spoil: Callable[[nn.Module, nn.Linear], nn.Module | None]) -> nn.Module:
    pair = Pair()
    tail = nn.Linear(4, 4)
    model = nn.Sequential(pair, nn.Tanh(), tail)
    other = spoil(model[1], pair.fc1)
    if other is not None:
        model[1] = other
    return model


def hook_elsewhere() -> nn.Module:
    def spoil(tail: nn.Module, first: nn.Linear) -> None:
        tail.register_forward_hook(lambda module, inputs, output: output + first.weight.sum())

    return _with_tail(spoil)


def hook_on_the_model() -> nn.Module:
    model = Pair()
    model.register_forward_hook(lambda module, inputs, y: y + module.fc1.weight.sum())
    return model


def replaced_elsewhere() -> nn.Module:
    def spoil(tail: nn.Module, first: nn.Linear) -> None:
        tail.forward = lambda x: torch.tanh(x) * first.weight.norm()

    return _with_tail(spoil)


def parametrised_elsewhere() -> nn.Module:
    def spoil(tail: nn.Module, first: nn.Linear) -> nn.Module:
        layer = nn.Linear(4, 4)
        nn.utils.parametrize.register_parametrization(
            layer, "weight", Parametrisation(first.weight)
        )
        return layer

    return _with_tail(spoil)


def opaque_elsewhere() -> nn.Module:
    return _with_tail(lambda tail, first: Opaque(first.weight))


HIDDEN: dict[str, Callable[[], nn.Module]] = {
    made.__name__: made
    for made in (
        InList, InDictionary, InObject, InArray, InPartial, InFunction, InGlobal, LayerInGlobal,
        OnClass, ByWeakReference, ByProperty, ByStateDict, ByCall, ByMode, ByCatching, ByAsking,
        Clipping, Wrapped, Shared, in_closure, hook_elsewhere, hook_on_the_model,
        replaced_elsewhere, parametrised_elsewhere, opaque_elsewhere,
    )
}  # fmt: skip
