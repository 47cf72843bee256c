"""Odd state, odd places of weights, and operations under other names."""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from odd_forwards import Mlp, Plain, Two, model, odd
from torch import Tensor, nn
from torch.nn import functional


@model("features")
class FoldedOnce(Two):
    """Keeps a product of weights from its first call on."""

    def prepare(self) -> None:
        self.folded: Any = None

    def forward(self, x: Tensor) -> Any:
        if self.folded is None:
            self.folded = (self.fc2.weight @ self.fc1.weight.tanh()).detach()
        return self.fc2(functional.relu(self.fc1(x))) + x @ self.folded.mT


@model("features")
class KeptUnitsOnce(Two):
    def prepare(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        h = self.fc1(x)
        self.kept.setdefault("h", h.detach())
        return self.fc2(h * self.kept["h"].mean(0))


@model("features")
class FlagTurns(Two):
    def prepare(self) -> None:
        self.first = True

    def forward(self, x: Tensor) -> Any:
        h = self.fc1(x)
        h = h if self.first else h.sigmoid()
        self.first = not self.first
        return self.fc2(h)


@model("features")
class NumberGrows(Two):
    def prepare(self) -> None:
        self.factor = 1.0

    def forward(self, x: Tensor) -> Any:
        self.factor *= 1.1
        return self.fc2(functional.relu(self.fc1(x)) * self.factor)


@model("features")
class ExponentGrows(Two):
    def prepare(self) -> None:
        self.exponent = 0

    def forward(self, x: Tensor) -> Any:
        self.exponent += 1
        return self.fc2(self.fc1(x) ** self.exponent)


@model("features")
class Anneals(Two):
    def prepare(self) -> None:
        self.acts = [torch.relu, torch.relu, torch.cos, torch.sin]

    def forward(self, x: Tensor) -> Any:
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        return self.fc2(act(self.fc1(x)))


@model("features")
class Lists(nn.Module):
    """Weights in lists and dictionaries of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.ws = nn.ParameterList([nn.Parameter(torch.randn(6, 4)), torch.randn(3, 6)])
        self.bs = nn.ParameterDict({"first": nn.Parameter(torch.randn(6))})

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.ws[0].T + self.bs["first"]) @ self.ws[1].T


@model("features")
class Property(Two):
    @property
    def weight(self) -> Tensor:
        return self.fc1.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(functional.linear(x, self.weight, self.fc1.bias)))


@model("features")
class Memoised(Two):
    def prepare(self) -> None:
        self.doubled = functools.lru_cache(lambda: (self.fc1.weight * 2).sum().item())

    def forward(self, x: Tensor) -> Any:
        return self.fc2(torch.relu(self.fc1(x))) * self.doubled()


@model("features")
class Threaded(Two):
    def forward(self, x: Tensor) -> Any:
        found: list[Tensor] = []
        worker = threading.Thread(target=lambda: found.append(self.fc1(x).tanh()))
        worker.start()
        worker.join()
        return self.fc2(found[0].detach())


@model("features")
class OwnCall(Two):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x * self.fc1.bias.sum())


@model("features")
class OwnGetattr(Two):
    """Gives another tensor under the name of a weight."""

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return found if name != "fc2" else functools.partial(_squeezed, found)


def _squeezed(layer: Any, h: Tensor) -> Tensor:
    return layer(h.tanh())


class Marked(Tensor):
    """A subclass that does more when it is multiplied."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found.tanh() if func is functional.linear else found


@model("features")
class OwnTensor(Two):
    def prepare(self) -> None:
        self.fc1.weight = nn.Parameter(self.fc1.weight.detach().as_subclass(Marked))


@model("images")
class Unbatched(nn.Module):
    """The first image alone, whose channels stand where a batch would."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 9, 1), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x[0]).flatten(1))


@odd(Plain, Mlp)
def transposed_in_place(s: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h.unsqueeze_(1)
    h.transpose_(0, 1)
    return h.squeeze_(0) + h.view(1, -1, 6).sum(0)


@odd(Plain, Mlp)
def filled_and_copied(s: Any, h: Tensor) -> Tensor:
    out = h.clone()
    out.fill_(0.5)
    out[1:].copy_(h[:-1])
    return out


@odd(Plain, Mlp)
def normal_in_place(s: Any, h: Tensor) -> Tensor:
    return h.clone().normal_() + h


@odd(Plain, Mlp)
def zeroed(s: Any, h: Tensor) -> Tensor:
    return h + h.clone().zero_().add_(1)


@odd(Plain, Mlp)
def powers_in_place(s: Any, h: Tensor) -> Tensor:
    return h.clone().pow_(2).sub_(h).clamp_(min=-1)


@odd(Plain, Mlp)
def named_operators(s: Any, h: Tensor) -> Tensor:
    return torch.sub(torch.special.expit(h), h, alpha=2) + torch.rsub(h, 1)


@odd(Plain, Mlp)
def number_to_the_power(s: Any, h: Tensor) -> Tensor:
    return 2**h + 1 / (h + 10) + (3 - h)


@odd(Plain, Mlp)
def deviation_by_place(s: Any, h: Tensor) -> Tensor:
    return h * h.T.std(-1, True) + torch.std_mean(h, 0)[1]


@odd(Plain, Mlp)
def deviation_by_correction(s: Any, h: Tensor) -> Tensor:
    return h / torch.var_mean(h, dim=-1, keepdim=True, correction=0)[0].add(1).sqrt()


@odd(Plain, Mlp)
def spectral_norm_of_units(s: Any, h: Tensor) -> Tensor:
    return h / torch.linalg.norm(h, 2) + torch.linalg.norm(h, "nuc")


@odd(Plain, Mlp)
def whole_sums(s: Any, h: Tensor) -> Tensor:
    return h + h.sum(-1, keepdim=True, dtype=torch.int64) + h.mean(-1, keepdim=True)


@odd(Plain, Mlp)
def renormed(s: Any, h: Tensor) -> Tensor:
    return torch.renorm(h, 2, 0, 1.0)


@odd(Plain, Mlp)
def clamped_by_norm(s: Any, h: Tensor) -> Tensor:
    return h * (1.0 / h.norm(dim=-1, keepdim=True)).clamp(max=1.0)


@odd(Plain, Mlp)
def clamped_between(s: Any, h: Tensor) -> Tensor:
    return torch.clamp(h, torch.zeros_like(h), h.abs() + 1) + h.clip(0)


@odd(Plain, Mlp)
def normalized_coarsely(s: Any, h: Tensor) -> Tensor:
    return functional.normalize(h, dim=-1, eps=5.0)


@odd(Plain, Mlp)
def reinterpreted(s: Any, h: Tensor) -> Tensor:
    return h.contiguous().view(torch.complex128).conj().view(torch.float64).resolve_conj()


@odd(Plain, Mlp)
def hard_limits(s: Any, h: Tensor) -> Tensor:
    return functional.hardtanh(h, -0.2, 0.6) + functional.relu6(h - 0.1)


@odd(Plain, Mlp)
def hard_in_place(s: Any, h: Tensor) -> Tensor:
    return functional.hardtanh_(h.clone(), min_val=-0.2, max_val=0.6)


@odd(Plain, Mlp)
def selected(s: Any, h: Tensor) -> Tensor:
    return torch.where(torch.tensor([True, False, True] * 2), h, 0.0) + h.take_along_dim(
        torch.zeros(1, 6, dtype=torch.long), 0
    )


@odd(Plain, Mlp)
def split_by_places(s: Any, h: Tensor) -> Tensor:
    return torch.cat([p.tanh() if i else p for i, p in enumerate(h.tensor_split([1, 4], -1))], -1)


@odd(Plain, Mlp)
def pieces_of_nine(s: Any, h: Tensor) -> Tensor:
    a, b, c = torch.tensor_split(h, 3, dim=-1)
    return torch.cat([a, b.relu(), c], -1)
