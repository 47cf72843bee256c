"""Odd control flow, hooks, checkpoints, wrappers, parametrisations, state and outputs."""

from __future__ import annotations

import copy
from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from odd_forwards import Attention, Call, Gated, Lora, Mlp, Plain, Residual, enter, model, numbers
from odd_forwards import odd
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.prepare()

    def prepare(self) -> None:
        """Make what the forward needs."""

    def hidden(self, x: Tensor) -> Tensor:
        return functional.relu(self.fc1(x))

    def forward(self, x: Tensor) -> Any:
        return self.fc2(self.hidden(x))


# Control flow.


@odd(Plain, Attention)
def by_training(s: Any, h: Tensor) -> Tensor:
    return h.tanh() if s.training else h


@odd(Plain, Mlp)
def by_batch_size(s: Any, h: Tensor) -> Tensor:
    return h if h.shape[0] > 4 else h.abs()


@odd(Mlp, Plain)
def by_grad_mode(s: Any, h: Tensor) -> Tensor:
    return h if torch.is_grad_enabled() else h + 1


def count(s: Any) -> None:
    s.calls = 0
    s.register_buffer("seen", torch.zeros((), dtype=torch.long))


@odd(Plain, Mlp, prepare=count)
def by_a_counter(s: Any, h: Tensor) -> Tensor:
    s.calls += 1
    return h if s.calls < 3 else h.tanh()


@odd(Plain, Mlp, prepare=count)
def by_a_buffer(s: Any, h: Tensor) -> Tensor:
    s.seen += 1
    return h if s.seen < 3 else h.tanh()


def keep(s: Any) -> None:
    s.register_buffer("average", torch.zeros(6))


@odd(Plain, Mlp, Gated, prepare=keep)
def running_average(s: Any, h: Tensor) -> Tensor:
    if s.training:
        s.average.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
    return h - s.average


@odd(Plain, Mlp, prepare=keep)
def state_kept(s: Any, h: Tensor) -> Tensor:
    out = h + s.average
    s.average = h.detach().sum(0)
    return out


def cache(s: Any) -> None:
    s.cache: list[Tensor] = []


@odd(Plain, Mlp, prepare=cache)
def cached_in_a_list(s: Any, h: Tensor) -> Tensor:
    s.cache.append(h.detach())
    return h + s.cache[0].mean(0)


@odd(Mlp, Plain)
def attribute_set(s: Any, h: Tensor) -> Tensor:
    s.last_hidden = h
    return s.last_hidden * 2


@odd(Mlp, Plain)
def by_exception(s: Any, h: Tensor) -> Tensor:
    try:
        return h @ h
    except RuntimeError:
        return h


@odd(Mlp, Plain)
def in_a_loop(s: Any, h: Tensor) -> Tensor:
    while float(h.abs().max()) > 0.5:
        h = h / 2
    return h


@odd(Mlp, Plain)
def by_generator(s: Any, h: Tensor) -> Tensor:
    return torch.stack([row for row in h], 0)


@odd(Mlp, Gated)
def with_noise(s: Any, h: Tensor) -> Tensor:
    return h + 0.1 * torch.randn_like(h)


@odd(Plain, Mlp, Gated)
def with_random_mask(s: Any, h: Tensor) -> Tensor:
    return h * (torch.rand_like(h) > 0.3)


@odd(Plain, Mlp)
def bernoulli_of_units(s: Any, h: Tensor) -> Tensor:
    return torch.bernoulli(h.sigmoid()) * h


@odd(Plain)
def multinomial(s: Any, h: Tensor) -> Tensor:
    return h[torch.multinomial(h.softmax(0)[:, 0], h.shape[0], replacement=True)]


@model(
    "features",
    Call((numbers(5, 4),), {"mask": torch.tensor([1.0, 0, 1, 0, 1, 1]).double()}),
    Call((numbers(5, 4),), {"squash": True}),
)
class Optional(Two):
    def forward(self, x: Tensor, mask: Tensor | None = None, squash: bool = False) -> Tensor:
        h = self.fc1(x)
        h = h if mask is None else h * mask
        return self.fc2(h.tanh() if squash else h)


@model("features", Call((numbers(5, 4), "tanh")), Call((numbers(5, 4), "softmax")))
class ByName(Two):
    def forward(self, x: Tensor, act: str = "relu") -> Tensor:
        h = self.fc1(x)
        return self.fc2(getattr(functional, act)(h) if act != "softmax" else h.softmax(-1))


# Checkpoints, compiled and scripted parts, functions with a gradient of their own, transforms.


@odd(Mlp, Plain, Residual)
def checkpointed(s: Any, h: Tensor) -> Tensor:
    return checkpoint(lambda y: torch.tanh(y) + y, h, use_reentrant=False)


@odd(Mlp, Plain)
def checkpointed_reentrant(s: Any, h: Tensor) -> Tensor:
    return checkpoint(torch.sin, h, use_reentrant=True)


@model("features")
class CheckpointedLayers(Two):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.fc2, checkpoint(self.hidden, x, use_reentrant=False),
                          use_reentrant=False)  # fmt: skip


@model("features")
class CheckpointedSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_sequential(self.layers, 2, x, use_reentrant=False)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class Doubled(torch.autograd.Function):
    """In the newer style, and linear."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return 2 * gradients[0]


@odd(Mlp, Plain)
def own_function(s: Any, h: Tensor) -> Tensor:
    return Straight.apply(h)


@odd(Mlp, Plain)
def own_linear_function(s: Any, h: Tensor) -> Tensor:
    return Doubled.apply(h)


@odd(Mlp, Plain)
def mapped(s: Any, h: Tensor) -> Tensor:
    return torch.vmap(lambda row: row / (1 + row.sum()))(h)


@odd(Mlp, Plain)
def jacobian(s: Any, h: Tensor) -> Tensor:
    return torch.func.jvp(torch.tanh, (h,), (h,))[1]


@odd(Mlp)
def gradient_inside(s: Any, h: Tensor) -> Tensor:
    return torch.func.grad(lambda y: (y**3).sum())(h)


compiled = torch.compile(lambda h: h.sin() * 2, backend="eager")
scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()).double())


@odd(Plain)
def compiled_part(s: Any, h: Tensor) -> Tensor:
    return compiled(h)


@model("features")
class ScriptedPart(Two):
    def prepare(self) -> None:
        self.part = copy.deepcopy(scripted)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.part(self.fc1(x)))


enter("scripted whole", lambda: torch.jit.script(Two()), "features")
enter("traced whole", lambda: torch.jit.trace(Two(), numbers(5, 4)), "features")


@odd(Mlp, Plain, Attention)
def autocasting(s: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return h * 1.5


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
enter("hook before", hooked("fc2", "forward_pre_hook", lambda m, x: (x[0].softmax(-1),)), "features")
enter("hook of the model", hooked("", "forward_hook", lambda m, x, y: y + m.fc1.bias[0]), "features")
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
enter("own parametrisation", parametrised(
    lambda m: parametrize.register_parametrization(m, "weight", Symmetric())), "features")
enter("pruned", parametrised(lambda m: prune.random_unstructured(m, "weight", 0.4)), "features")
enter("rows pruned", parametrised(lambda m: prune.ln_structured(m, "weight", 0.3, 2, 0)), "features")


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


Named = namedtuple("Named", "y hidden")  # noqa: PYI024


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
