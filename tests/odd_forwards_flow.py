"""Odd control flow, hooks, checkpoints, wrappers, parametrisations, state and outputs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from odd_forwards import (
    Attention,
    Call,
    Gated,
    Mlp,
    Plain,
    Residual,
    Two,
    enter,
    model,
    numbers,
    odd,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

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
    s.cache = []


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
    return torch.stack([2 * row for row in h], 0)


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
