"""Odd but legal models: a core, and something odd that its forward does.

``odd`` registers a core whose hidden units pass a function; ``model`` registers a class. What is
tried on each of them is in ``odd_trials``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Hidden = Callable[[Any, Tensor], Any]


@dataclass(frozen=True)
class Call:
    """One call of a model: its arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Odd:
    """A model, and how it is called.

    Attributes:
        make: builds it, always with the same weights.
        example: the arguments of the example.
        others: other calls that a user may make.
        tolerance: the relative change that counts as rounding.
    """

    make: Callable[[], nn.Module]
    example: tuple[Any, ...]
    others: tuple[Call, ...]
    tolerance: float = 1e-8


ODD: dict[str, Odd] = {}


def numbers(*shape: int, seed: int = 1) -> Tensor:
    """Fixed random numbers in double precision."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=made, dtype=torch.float64)


def tokens(*shape: int, seed: int = 1) -> Tensor:
    """Fixed random places in a table of 7 rows."""
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(seed))


INPUTS: dict[str, tuple[Tensor, list[Tensor]]] = {
    "features": (numbers(5, 4), [numbers(3, 4, seed=2) * 3, numbers(1, 4, seed=3)]),
    "positions": (numbers(2, 5, 4), [numbers(3, 7, 4, seed=2), numbers(1, 5, 4, seed=3)]),
    "images": (numbers(2, 3, 6, 6), [numbers(3, 3, 6, 6, seed=2), numbers(1, 3, 8, 8, seed=3)]),
    "tokens": (tokens(2, 5), [tokens(3, 6, seed=2), tokens(1, 5, seed=3)]),
}


def built(kind: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A builder of models in double precision, from a fixed seed."""

    def make() -> nn.Module:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made = kind()
        finally:
            torch.set_default_dtype(before)
        return made

    return make


def enter(name: str, kind: Callable[[], nn.Module], inputs: str, *others: Call) -> None:
    """Register a model."""
    assert name not in ODD, name
    example, more = INPUTS[inputs]
    calls = tuple(Call((x,)) for x in more)
    ODD[name] = Odd(built(kind), (example,), (*calls, *others))


def model(inputs: str, *others: Call) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a class of models under its name."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        enter(kind.__name__, kind, inputs, *others)
        return kind

    return register


class Core(nn.Module):
    """A core; ``mid`` is done with its hidden units, ``prepare`` after it was built."""

    inputs = "features"

    def mid(self, h: Tensor) -> Any:
        return h

    def prepare(self) -> None:
        """Make what the odd part needs."""


class Mlp(Core):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.prepare()

    def forward(self, x: Tensor) -> Any:
        return self.fc2(self.mid(functional.relu(self.fc1(x))))


class Plain(Mlp):
    """Without an activation: all groups could act."""

    def forward(self, x: Tensor) -> Any:
        return self.fc2(self.mid(self.fc1(x)))


class Late(Mlp):
    """The odd part comes before the activation."""

    def forward(self, x: Tensor) -> Any:
        return self.fc2(torch.tanh(self.mid(self.fc1(x))))


class Sequence(Mlp):
    """The same on positions."""

    inputs = "positions"


class Gated(Core):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
        self.prepare()

    def forward(self, x: Tensor) -> Any:
        return self.down(self.mid(functional.silu(self.gate(x)) * self.up(x)))


class Residual(Core):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(4, 6), nn.Linear(6, 3)
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)
        self.prepare()

    def forward(self, x: Tensor) -> Any:
        h = self.start(x)
        return self.end(h + self.outer(self.mid(functional.relu(self.inner(h)))))


class Convolved(Core):
    inputs = "images"

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.prepare()

    def forward(self, x: Tensor) -> Any:
        h = functional.relu(self.bn(self.conv1(x)))
        return self.conv2(self.mid(h)).mean((2, 3))


class Attention(Core):
    """Two heads of size 3; the odd part sees the values of heads."""

    inputs = "positions"

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 6)
        self.o = nn.Linear(6, 4)
        self.prepare()

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], 2, 3).transpose(1, 2)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        scores = (q @ k.transpose(-2, -1) / 3**0.5).softmax(-1)
        out = scores @ self.mid(v)
        return self.o(out.transpose(1, 2).reshape(x.shape[0], x.shape[1], 6))


class Embedded(Core):
    inputs = "tokens"

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)
        self.prepare()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.mid(self.table(x)))


class Lora(Core):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 6)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.base.requires_grad_(False)
        self.prepare()

    def forward(self, x: Tensor) -> Any:
        return self.base(x) + self.up(self.mid(self.down(x)))


class Two(nn.Module):
    """Two layers; others change what they hold or how they run."""

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


def odd(
    *cores: type[Core], prepare: Any = None, tolerance: float = 1e-8
) -> Callable[[Hidden], Hidden]:
    """Register cores whose hidden units pass a function."""

    def register(mid: Hidden) -> Hidden:
        for core in cores:
            body: dict[str, Any] = {"mid": mid}
            if prepare is not None:
                body["prepare"] = prepare
            kind = type(f"{core.__name__}_{mid.__name__}", (core,), body)
            name = f"{core.__name__.lower()}-{mid.__name__}"
            enter(name, kind, core.inputs)
            ODD[name] = replace(ODD[name], tolerance=tolerance)
        return mid

    return register
