"""Small networks that differ in their hidden units, and mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from architectures.base import NON_ZERO, Architecture, Call, Inputs, Refused, Row, wake


class Sine(nn.Module):
    """sin(30 x), as in SIREN."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


class Squared(nn.Module):
    """relu(x)^2."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x).square()


def mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    """4 -> 9 -> 7 -> 3 with the same activation twice."""
    layers = [nn.Linear(4, 9), activation(), nn.Linear(9, 7), activation(), nn.Linear(7, 3)]
    return wake(nn.Sequential(*layers))


def siren() -> nn.Module:
    """At the size of SIREN's own start, so that it is smooth."""
    model = mlp(Sine)
    with torch.no_grad():
        for p in model.parameters():
            p.div_(15)
    return model


class Gated(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.gate, self.up, self.down = nn.Linear(4, 9), nn.Linear(4, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Tied(nn.Module):
    """An autoencoder W^T act(W x + b) + c."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.encoder = nn.Linear(6, 4)
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.act(self.encoder(x)), self.encoder.weight.t(), self.bias)


class DeepSets(nn.Module):
    """rho(sum over the set of phi)."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5))
        self.rho = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).sum(dim=1))


class NoEps(nn.Module):
    """A LayerNorm that divides by the deviation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(4, 9), nn.LayerNorm(9, eps=0.0), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.norm(self.fc1(x))))


class Experts(nn.Module):
    """Three ReLU experts as stacked tensors.

    Args:
        top: how many of them work on a word; None for all, weighted by the router.
    """

    def __init__(self, top: int | None = None) -> None:
        super().__init__()
        self.top = top
        self.router = nn.Linear(6, 3)
        self.w1 = nn.Parameter(torch.randn(3, 6, 8))
        self.w2 = nn.Parameter(torch.randn(3, 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        weights = functional.softmax(self.router(x), dim=-1)
        if self.top is None:
            hidden = functional.relu(torch.einsum("btd,edh->bteh", x, self.w1))
            out = torch.einsum("bteh,eho->bteo", hidden, self.w2)
            return torch.einsum("bteo,bte->bto", out, weights)
        words, weights = x.flatten(0, 1), weights.flatten(0, 1)
        weights, chosen = torch.topk(weights, self.top, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = words.new_zeros(len(words), 5)
        for expert in range(3):
            word, place = torch.where(chosen == expert)
            hidden = functional.relu(words[word] @ self.w1[expert])
            out.index_add_(0, word, (hidden @ self.w2[expert]) * weights[word, place, None])
        return out.unflatten(0, x.shape[:2])


def _rows(*shape: int) -> tuple[Callable[[torch.dtype], Any], dict[str, Call]]:
    """An example, and the calls, with rows of this shape."""
    return (
        lambda dtype: (Inputs(dtype).normal(4, *shape),),
        {"plain": lambda model, given: model(given.normal(given.batch + 2, *shape))},
    )


def _both(group: str, activation: str) -> tuple[Row, ...]:
    """A group, and permutations, between the layers of ``mlp``."""
    moves = (("0.{weight,bias} 2.weight", 9), ("2.{weight,bias} 4.weight", 7))
    groups = ("permutation",) if group == "permutation" else (group, "permutation")
    return tuple(
        Row(f"hidden units ({activation})", name, size, path)
        for path, size in moves
        for name in groups
    )


def _mlp(name: str, build: Callable[[], nn.Module], rows: tuple[Row, ...]) -> Architecture:
    example, calls = _rows(4)
    return Architecture(name, build, example, calls, rows)


def _gated(name: str, act: Callable[[Tensor], Tensor], *more: Row) -> Architecture:
    rows = (
        Row("linear branch of gated units", NON_ZERO, 9, "up.{weight,bias} down.weight"),
        Row("gated units", "permutation", 9, "{gate,up}.{weight,bias} down.weight"),
    )
    return _mlp(name, lambda: wake(Gated(act)), (*rows, *more))


def _tied(name: str, act: Callable[[Tensor], Tensor], group: str | None) -> Architecture:
    example, calls = _rows(6)
    moves = "encoder.{weight,bias}"
    relabel = Row("code", "permutation", 4, moves)
    found = (relabel,) if group is None else (Row("code", group, 4, moves), relabel)
    refused = Refused("scaling of the code", "encoder", "itself|tied|shares|both|transposed")
    return Architecture(
        name, lambda: wake(Tied(act)), example, calls, found, (refused,) if group is None else ()
    )


def _same(x: Tensor) -> Tensor:
    return x


# The slopes of PReLU, one a unit, are relabelled with the units.
_prelu = (
    *(row for row in _both("positive scaling", "PReLU") if row.group != "permutation"),
    Row("hidden units (PReLU)", "permutation", 9, "0.{weight,bias} 1.weight 2.weight"),
    Row("hidden units (PReLU)", "permutation", 7, "2.{weight,bias} 3.weight 4.weight"),
)


def _prelus() -> nn.Module:
    return wake(
        nn.Sequential(nn.Linear(4, 9), nn.PReLU(9), nn.Linear(9, 7), nn.PReLU(7), nn.Linear(7, 3))
    )


UNITS = (
    _mlp("SIREN", siren, _both("sign flips", "sine")),
    _mlp("tanh network", lambda: mlp(nn.Tanh), _both("sign flips", "tanh")),
    _mlp("GELU network", lambda: mlp(nn.GELU), _both("permutation", "GELU")),
    _mlp("PReLU network", _prelus, _prelu),
    _mlp(
        "squared ReLU network",
        lambda: mlp(Squared),
        _both("positive scaling", "squared ReLU, degree 2"),
    ),
    _gated(
        "ReGLU",
        functional.relu,
        Row("gate (ReLU)", "positive scaling", 9, "gate.{weight,bias} down.weight"),
    ),
    _gated("GEGLU", functional.gelu),
    _tied("tied autoencoder, linear", _same, "orthogonal"),
    _tied("tied autoencoder, tanh", torch.tanh, "sign flips"),
    _tied("tied autoencoder, ReLU", torch.relu, None),
    _mlp(
        "LayerNorm with eps = 0",
        lambda: wake(NoEps()),
        (
            Row("what the norm divides by", "positive scaling", 1, "fc1.{weight,bias}"),
            Row("what LayerNorm centres", "translation", 0, "fc1.{weight,bias}"),
            Row("hidden units (ReLU)", "positive scaling", 9, "norm.{weight,bias} fc2.weight"),
            Row("hidden units", "permutation", 9, "{fc1,norm}.{weight,bias} fc2.weight"),
        ),
    ),
    Architecture(
        "DeepSets",
        lambda: wake(DeepSets()),
        *_rows(5, 4),
        (
            Row("hidden units (ReLU)", "positive scaling", 9, "phi.0.{weight,bias} phi.2.weight"),
            Row("hidden units (ReLU)", "permutation", 9, "phi.0.{weight,bias} phi.2.weight"),
            Row("through the sum", "general linear", 5, "phi.2.{weight,bias} rho.0.weight"),
            Row("hidden units (ReLU)", "positive scaling", 7, "rho.0.{weight,bias} rho.2.weight"),
            Row("hidden units (ReLU)", "permutation", 7, "rho.0.{weight,bias} rho.2.weight"),
        ),
    ),
    Architecture(
        "soft mixture of experts",
        lambda: wake(Experts()),
        *_rows(5, 6),
        (
            Row("hidden units, the same in all experts", "positive scaling", 8, "w1 w2"),
            Row("experts (ReLU)", "positive scaling", 3, "w1 w2"),
            Row("hidden units of an expert (ReLU)", "permutation", 8, "w1 w2", blocks=3),
            Row("experts", "permutation", 3, "router.{weight,bias} w1 w2"),
            Row("router (softmax)", "translation", 0, "router.{weight,bias}"),
        ),
    ),
    Architecture(
        "top-k mixture of experts",
        lambda: wake(Experts(top=2)),
        *_rows(5, 6),
        (
            Row("router (softmax)", "translation", 0, "router.{weight,bias}", needed=False),
            Row("hidden units, the same in all experts", "positive scaling", 8, "w1 w2"),
            Row("hidden units, the same in all experts", "permutation", 8, "w1 w2"),
        ),
        says="data decide which expert works, so that experts keep their places",
    ),
)
