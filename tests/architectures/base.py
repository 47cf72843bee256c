"""What an architecture of the zoo is: a model, calls of it, and which symmetries it has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

NON_ZERO = "non-zero scaling"
"""Positive scaling with sign flips; a group of its own in the table."""


class Inputs:
    """Random inputs of one seed: the same for every dtype, up to rounding.

    Args:
        dtype: of the inputs that are no integers.
        seed: of the generator.
        batch: how many examples.
        length: of sequences.
    """

    def __init__(
        self, dtype: torch.dtype = torch.float32, seed: int = 1, batch: int = 2, length: int = 6
    ) -> None:
        self.dtype, self.batch, self.length = dtype, batch, length
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Of both signs, in float64 first."""
        drawn = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return drawn.to(self.dtype)

    def tokens(self, vocabulary: int = 50, batch: int = 0, length: int = 0) -> Tensor:
        """Integers from 3 on (0 to 2 may be padding and the like), [batch, length]."""
        shape = (batch or self.batch, length or self.length)
        return torch.randint(3, vocabulary, shape, generator=self._generator)

    def mask(self) -> Tensor:
        """Ones, but for the last two places of the first row, [batch, length]."""
        mask = torch.ones(self.batch, self.length, dtype=torch.int64)
        mask[0, -2:] = 0
        return mask


Call = Callable[[nn.Module, Inputs], Any]
"""Runs a model on inputs of its own choice, and gives what comes out."""


@dataclass(frozen=True)
class Row:
    """Symmetries of one kind that an architecture has.

    Attributes:
        what: how the page names them.
        group: the group; ``NON_ZERO`` for positive scaling that allows sign flips too.
        size: the width of an element; of diagonal groups the number of all units.
        moves: the paths of all tensors that one of them moves, apart by spaces. ``{a,b}`` stands
            for both, ``#`` for the number of the layer, ``@`` for the second number.
        blocks: elements side by side.
        layers: how many layers have it.
        second: how many numbers ``@`` takes.
        needed: whether it must be found; what is there and need not be found is on no page.
    """

    what: str
    group: str
    size: int
    moves: str
    blocks: int = 1
    layers: int = 1
    second: int = 1
    needed: bool = True

    @property
    def count(self) -> int:
        """How many symmetries these are."""
        return self.layers * self.second

    def paths(self) -> Iterator[frozenset[str]]:
        """Of each of these symmetries the paths that it moves."""
        for layer in range(self.layers):
            for other in range(self.second):
                text = self.moves.replace("#", str(layer)).replace("@", str(other))
                yield frozenset(path for pattern in text.split() for path in braces(pattern))


def braces(pattern: str) -> Iterator[str]:
    """``a.{b,c}`` -> ``a.b``, ``a.c``; innermost braces first."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    for choice in match[1].split(","):
        yield from braces(pattern[: match.start()] + choice + pattern[match.end() :])


@dataclass(frozen=True)
class Refused:
    """What is no symmetry of the groups, or cannot be known: the reason must be given.

    Attributes:
        what: how the page names it.
        module: what the path of a ``Skipped`` must match (a regular expression, from its start).
        reason: what its reason must contain (a regular expression).
    """

    what: str
    module: str
    reason: str


@dataclass(frozen=True)
class Architecture:
    """A small model with calls, and what must be found in it.

    Attributes:
        name: of the table.
        build: the model, with weights that are not at their start, in float32.
        example: the inputs that the search is given: a tuple of arguments or keyword arguments.
        calls: name -> a call with other inputs than the example.
        found: what must be listed, permutations too.
        refused: what must be left alone, and why.
        needs: the package that it needs beyond torch.
        random: whether it has dropout: permutations then hold in distribution alone.
        doubled: whether its code works in float32 inside, whatever its weights are.
        same_as: the architecture in whose row of the table it stands, if it has none of its own.
        says: what the page adds.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[torch.dtype], Any]
    calls: Mapping[str, Call]
    found: tuple[Row, ...] = ()
    refused: tuple[Refused, ...] = ()
    needs: str = ""
    random: bool = False
    doubled: bool = False
    same_as: str = ""
    says: str = field(default="", compare=False)

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model, always with the same weights up to rounding."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.build().to(dtype)


def wake(model: nn.Module, gains: bool = True, seed: int = 0) -> nn.Module:
    """Weights of a size at which everything counts: biases, gains, statistics, embeddings.

    Args:
        model: a fresh model; frozen parameters stay.
        gains: whether those of RMSNorms are drawn too, and not left equal.
        seed: of the draws.
    """
    draws = torch.Generator().manual_seed(seed)
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower() or "norm" in path.rpartition(".")[2]
        for name, p in module.named_parameters(recurse=False):
            if not p.requires_grad:
                continue
            with torch.no_grad():
                if is_norm and name == "weight":
                    if gains or getattr(module, "bias", None) is not None:
                        p += 0.5 * torch.rand(p.shape, generator=draws)
                elif p.ndim <= 1:
                    p += 0.3 * torch.randn(p.shape, generator=draws)
                else:
                    fan_in = max(p[0].numel(), 1) if p.ndim != 3 else p.shape[1]
                    size = fan_in**-0.5 if not isinstance(module, nn.Embedding) else 1.0
                    p.copy_(size * torch.randn(p.shape, generator=draws))
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=draws))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=draws))
    return model


class Only(nn.Module):
    """A model that gives one of its outputs alone, as a training loop reads it."""

    def __init__(self, model: nn.Module, output: str = "logits") -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, **given: Any) -> Tensor:
        """Of keyword arguments alone."""
        return self.model(**given)[self.output]


def called(model: nn.Module, example: Any) -> Any:
    """What a model gives for an example as ``symmetries`` takes it."""
    return model(**example) if isinstance(example, Mapping) else model(*example)
