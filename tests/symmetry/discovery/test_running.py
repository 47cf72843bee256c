"""What a run writes down of odd code; and that the model is as it was."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pytest
import torch
from flows import ALL, PLAIN, WITH_RELU, Forward, Odd, recorded, written
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import metaopt


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.relu(x) * 2


@torch.jit.script
def scripted_in_place(x: Tensor) -> int:
    x.mul_(2)
    return 1


@torch.jit.script
def told(x: Tensor) -> float:
    return float(x.sum())


def then(*steps: Any) -> Any:
    """The last of some values, which Python computes in order."""
    return steps[-1]


def aliased(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    kept = h
    h += 1
    return s.b(h) + s.b(kept)


def view_written(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    part = h[:, :3]
    part.mul_(3)
    return s.b(h)


def base_written(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    view = h.view(2, -1, 6)
    h.relu_()
    return s.b(view)


def through_data(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    h.data.relu_()
    return s.b(h)


def filled(s: Any, x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], 6)
    out[:, 1:] = s.a(x)[:, 1:]
    return s.b(out)


def stored(s: Any, x: Tensor) -> Tensor:
    s.last = s.a(x)
    return s.b(s.last)


def weight_written(s: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        s.a.weight.mul_(0.5)
    return s.b(s.a(x))


def data_set(s: Any, x: Tensor) -> Tensor:
    s.a.weight.data = s.a.weight.data * 0.5
    return s.b(s.a(x))


def in_place_by_script(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    scripted_in_place(h)
    return s.b(h)


def gradient(s: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        h = s.a(x)
        return torch.autograd.grad(s.b(h).sum(), h, create_graph=True)[0]


FORWARDS: dict[str, tuple[Forward, str]] = {
    "plain": (lambda s, x: s.b(s.a(x)), PLAIN),
    "forward alone": (lambda s, x: s.b.forward(s.a.forward(x)), PLAIN),
    "module of none": (lambda s, x: s.b(nn.ReLU()(s.a(x))), WITH_RELU),
    "in place": (lambda s, x: s.b(s.a(x).relu_()), WITH_RELU),
    "flag": (lambda s, x: s.b(functional.relu(s.a(x), inplace=True)), WITH_RELU),
    "aten": (lambda s, x: s.b(torch.ops.aten.relu.default(s.a(x))), WITH_RELU),
    "autocast": (
        lambda s, x: torch.autocast("cpu", torch.bfloat16)(lambda: s.b(s.a(x).relu()))(),
        WITH_RELU,
    ),
    "inference": (lambda s, x: torch.inference_mode()(lambda: s.b(s.a(x).relu()))(), WITH_RELU),
    "checkpoint": (
        lambda s, x: checkpoint(lambda z: s.b(s.a(z).relu()), x, use_reentrant=False),
        WITH_RELU,
    ),
    "checkpoint that enters again": (
        lambda s, x: checkpoint(lambda z: s.b(s.a(z).relu()), x, use_reentrant=True),
        WITH_RELU,
    ),
    "swapped": (lambda s, x: s.b(1 - s.a(x)), "linear(0 wa ba)1; sub(1)2; linear(2 wb bb)3 -> 3"),
    "matmul": (
        lambda s, x: s.b(x @ s.a.weight.T + s.a.bias),
        "T(wa)0; matmul(1 0)2; add(2 ba)3; linear(3 wb bb)4 -> 4",
    ),
    "chunks": (
        lambda s, x: s.b(torch.cat(s.a(x).chunk(2, -1)[::-1], -1)),
        "linear(0 wa ba)1; chunk(1)2 3; cat(3 2)4; linear(4 wb bb)5 -> 5",
    ),
    "empty": (
        lambda s, x: s.b(torch.cat([torch.tensor([]), s.a(x)])),
        "tensor()0; linear(1 wa ba)2; identity(2)3; linear(3 wb bb)4 -> 4",
    ),
    "casts": (
        lambda s, x: s.b((s.a(x).double().float() > 0).float()),
        "linear(0 wa ba)1; identity(1)2; identity(2)3; gt(3)4; cast(4)5; linear(5 wb bb)6 -> 6",
    ),
    "alias": (
        aliased,
        "linear(0 wa ba)1; add(1)2; linear(2 wb bb)3; linear(2 wb bb)4; add(3 4)5 -> 5",
    ),
    "view": (
        view_written,
        "linear(0 wa ba)1; getitem(1)2; mul(2)3; overwritten(1 3)4; linear(4 wb bb)5 -> 5",
    ),
    "base": (
        base_written,
        "linear(0 wa ba)1; reshape(1)2; relu(1)3; overwritten(2 3)4; linear(4 wb bb)5 -> 5",
    ),
    "data": (
        through_data,
        "linear(0 wa ba)1; identity(1)2; relu(2)3; identity(3)4; linear(4 wb bb)5 -> 5",
    ),
    "setitem": (
        filled,
        "zeros()0; linear(1 wa ba)2; getitem(2)3; setitem(0 3)4; linear(4 wb bb)5 -> 5",
    ),
    "weight written": (
        weight_written,
        "mul(wa)0; linear(1 0 ba)2; linear(2 wb bb)3 -> 3 0",
    ),
    "data set": (
        data_set,
        "identity(wa)0; mul(0)1; set data(wa 1)2; linear(3 2 ba)4; linear(4 wb bb)5 -> 5 2",
    ),
    "attribute": (stored, "linear(0 wa ba)1; linear(1 wb bb)2 -> 2 1"),
    "Function": (
        lambda s, x: s.b(Square.apply(s.a(x))),
        "linear(0 wa ba)1; mul(1 1)2; linear(2 wb bb)3 -> 3",
    ),
    "vmap": (
        lambda s, x: torch.vmap(lambda row: s.b(s.a(row)))(x),
        "unseen(0)1; linear(1 wa ba)2; linear(2 wb bb)3; unseen(3)4 -> 4",
    ),
    "script": (
        lambda s, x: s.b(scripted(s.a(x))),
        f"linear(0 wa ba)1; unseen({ALL} 0 1)2; linear(2 wb bb)3 -> 3",
    ),
    "script in place": (
        in_place_by_script,
        f"linear(0 wa ba)1; unseen({ALL} 0 1)2; linear(2 wb bb)3 -> 3",
    ),
    "script that tells": (
        lambda s, x: s.b(s.a(x) * told(x)),
        f"linear(0 wa ba)1; unseen({ALL} 0 1); mul(1)2; linear(2 wb bb)3 -> 3",
    ),
    "gradient": (gradient, "linear(0 wa ba)1; linear(1 wb bb)2; sum(2)3; grad(3 1)4 -> 4"),
    "item": (
        lambda s, x: s.b(s.a(x)) * s.a.weight.sum().item(),
        "linear(0 wa ba)1; linear(1 wb bb)2; sum(wa)3; item(3); mul(2)4 -> 4",
    ),
    "branch": (
        lambda s, x: s.b(s.a(x)) if s.a(x).sum() < 1e9 else x,
        "linear(0 wa ba)1; sum(1)2; lt(2)3; __bool__(3); linear(0 wa ba)4; linear(4 wb bb)5 -> 5",
    ),
    "numpy": (
        lambda s, x: s.b(torch.from_numpy(s.a(x).detach().numpy() * 2)),
        "linear(0 wa ba)1; identity(1)2; numpy(2); tensor()3; linear(3 wb bb)4 -> 4",
    ),
    "numbers": (
        lambda s, x: s.b(s.a(x) * torch.from_numpy(np.ones(6, np.float32))),
        "linear(0 wa ba)1; tensor()2; mul(1 2)3; linear(3 wb bb)4 -> 4",
    ),
    "random": (
        lambda s, x: then(random.random(), np.random.rand(), s.b(s.a(x) + torch.randn(6))),
        "linear(0 wa ba)1; randn()2; add(1 2)3; linear(3 wb bb)4 -> 4",
    ),
    "nested": (
        lambda s, x: {"h": s.a(x), "rest": [s.b(x.new_ones(6)), "text", None]},
        "linear(0 wa ba)1; new_ones(0)2; linear(2 wb bb)3 -> 1 3",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", FORWARDS)
def test_what_is_written_down(name: str, training: bool) -> None:
    forward, expected = FORWARDS[name]
    assert written(recorded(Odd(forward), training)) == expected


def _made(n: int) -> Tensor:
    return torch.arange(n)


_places = functools.lru_cache(maxsize=10)(_made)


class _Cached(nn.Module):
    """Keeps a table that it made, in a cache of a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.e, self.o = nn.Linear(4, 6), nn.Embedding(9, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, length, _ = x.shape
        return self.o((self.a(x) + self.e(_places(int(length)))).relu())


@pytest.mark.parametrize("ran_before", [False, True])
def test_no_stand_in_stays_in_a_cache(ran_before: bool) -> None:
    _places.cache_clear()
    model, x = _Cached(), torch.randn(2, 5, 4)
    if ran_before:
        model(x)
    assert [s.size for s in metaopt.symmetries(model, x)] == [6]
    assert type(model(x)) is Tensor
    assert type(_places(5)) is Tensor
