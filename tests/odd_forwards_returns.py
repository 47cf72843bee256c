"""Hooks, parametrisations, and models that return odd things."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from odd_forwards import Lora, Plain, Two, enter, model, odd
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

# Hooks and replaced methods.


def hooked(where: str, kind: str, hook: Any, core: type[nn.Module] = Two) -> Any:
    def make() -> nn.Module:
        made = core()
        getattr(made.get_submodule(where), f"register_{kind}")(hook)
        return made

    return make


OUTPUT_HOOKS: dict[str, Any] = {
    "shifts": lambda m, x, y: y + 1,
    "squashes": lambda m, x, y: torch.tanh(y),
    "drops some": lambda m, x, y: y * torch.arange(y.shape[-1]),
    "looks": lambda m, x, y: None,
    "writes": lambda m, x, y: y.mul_(2) and None if y.numel() == 1 else None,
    "reads weights": lambda m, x, y: y * m.weight.sum(),
}
for _name, _hook in OUTPUT_HOOKS.items():
    enter(f"hook {_name}", hooked("fc1", "forward_hook", _hook), "features")
    if _name != "looks":
        enter(f"last hook {_name}", hooked("fc2", "forward_hook", _hook), "features")
enter(
    "hook before", hooked("fc2", "forward_pre_hook", lambda m, x: (x[0].softmax(-1),)), "features"
)
enter(
    "hook of the model", hooked("", "forward_hook", lambda m, x, y: y + m.fc1.bias[0]), "features"
)
enter("hook before the model", hooked("", "forward_pre_hook", lambda m, x: x[0] * 2), "features")


def replaced(name: str, what: Any) -> Any:
    def make() -> nn.Module:
        made = Two()
        setattr(made.fc1, name, what(made.fc1))
        return made

    return make


enter("forward replaced", replaced("forward", lambda m: lambda x: m.weight.tanh() @ x.mT), "images")
enter("forward wrapped", replaced("forward", lambda m: partial(_twice, m.forward)), "features")


def _twice(forward: Any, x: Tensor) -> Tensor:
    return forward(x) + forward(-x).tanh()


class Loud(nn.Linear):
    """A subclass that adds something of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.weight.abs().max()


@model("features")
class Subclassed(Two):
    def prepare(self) -> None:
        self.fc1 = Loud(4, 6)


# Parametrisations, masks, integers.


def parametrised(what: Any, name: str = "fc1") -> Any:
    def make() -> nn.Module:
        made = Two()
        what(made.get_submodule(name))
        return made

    return make


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT if w.shape[0] == w.shape[1] else w.abs()


enter("weight norm", parametrised(parametrizations.weight_norm), "features")
enter("weight norm, second", parametrised(parametrizations.weight_norm, "fc2"), "features")
enter("old weight norm", parametrised(nn.utils.weight_norm), "features")
enter("spectral norm", parametrised(parametrizations.spectral_norm), "features")
enter("old spectral norm", parametrised(nn.utils.spectral_norm), "features")
enter("orthogonal", parametrised(parametrizations.orthogonal), "features")
enter(
    "own parametrisation",
    parametrised(lambda m: parametrize.register_parametrization(m, "weight", Symmetric())),
    "features",
)
enter("pruned", parametrised(lambda m: prune.random_unstructured(m, "weight", 0.4)), "features")
enter(
    "rows pruned", parametrised(lambda m: prune.ln_structured(m, "weight", 0.3, 2, 0)), "features"
)


@model("features")
class IntegerBuffer(Two):
    def prepare(self) -> None:
        self.register_buffer("order", torch.tensor([5, 3, 1, 0, 2, 4]))
        self.register_buffer("scale", torch.randint(-3, 4, (6,), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x)[:, self.order] * self.scale)


@model("features")
class FakeQuantised(Two):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.fake_quantize_per_tensor_affine(self.fc1(x).float(), 0.1, 0, -128, 127).double()
        return self.fc2(h)


# Outputs that hold hidden units, or are inputs.


@dataclass
class Out:
    y: Tensor
    hidden: Tensor


Named = namedtuple("Named", "y hidden")


def returning(name: str, what: Any) -> None:
    class Returning(Two):
        def forward(self, x: Tensor) -> Any:
            h = self.fc1(x)
            return what(x, h, self.fc2(h))

    enter(f"returns {name}", Returning, "features")


RETURNS: dict[str, Any] = {
    "a dictionary": lambda x, h, y: {"y": y, "deep": [{"h": h}]},
    "a dataclass": lambda x, h, y: Out(y, h),
    "a named tuple": lambda x, h, y: Named(y, h),
    "a sum of units": lambda x, h, y: (y, h.sum(-1)),
    "lengths of units": lambda x, h, y: (y, h.norm(dim=-1)),
    "one unit": lambda x, h, y: (y, h[:, 0]),
    "units of one row": lambda x, h, y: (y, h[0]),
    "the largest place": lambda x, h, y: (y, h.argmax(-1)),
    "an array": lambda x, h, y: (y, h.detach().numpy()),
    "a number": lambda x, h, y: (y, h.abs().mean().item()),
    "a view of inputs": lambda x, h, y: (y, x[:, 1:]),
    "inputs": lambda x, h, y: (x, y),
    "nothing of it": lambda x, h, y: x.sum(),
    "units without gradient": lambda x, h, y: (y, h.detach()),
    "signs": lambda x, h, y: (y, h > 0),
    "units times zero": lambda x, h, y: (y, h * 0),
    "a set of sizes": lambda x, h, y: (y, tuple(h.shape)),
    "half": lambda x, h, y: y.half(),
    "a function": lambda x, h, y: (y, h.relu().sort(-1).values),
}
for _name, _what in RETURNS.items():
    returning(_name, _what)


@model("features")
class KeptAside(Two):
    """Leaves hidden units where a user may read them."""

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.fc1(x)
        return self.fc2(self.features)


@model("features")
class WritesInput(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x[:, 0] = self.fc1(x)[:, 0]
        return self.fc2(self.fc1(x)), x


@odd(Lora, Plain)
def doubled_by_module(s: Any, h: Tensor) -> Tensor:
    return nn.Sequential(nn.Identity(), nn.Flatten())(h) * 2
