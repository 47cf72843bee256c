"""Models whose own ``train`` or modules change what is read: nothing is taken for granted."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt
from metaopt.symmetry.discovery.running import run
from metaopt.symmetry.discovery.tracing import traces
from metaopt.symmetry.discovery.watch import UntraceableError

factor: Any = iter([1.0])
first, second = ModuleType("first"), ModuleType("second")
counter = first


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.b(torch.relu(self.a(x)))
        return hidden


class Takes(Net):
    """``train`` brings an iterator from where nothing hides it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = (iter([1.0, 2.0]),)
        self.now: Iterator[float] | None = None

    def train(self, mode: bool = True) -> Takes:
        self.now = self.kept[0]
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        assert self.now is not None
        return super().forward(x * next(self.now))


class Replaces(Net):
    """``train`` puts a list in the place of an iterator, or takes it away, or in a global's."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.held: Any = iter([1.0])

    def train(self, mode: bool = True) -> Replaces:
        global factor
        if self.way == "replaced":
            self.held = [2.0]
        elif self.way == "deleted":
            self.__dict__.pop("held", None)
        else:
            factor = 3.0
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "replaced":
            x = x * self.held[0]
        elif self.way == "global":
            x = x * factor
        elif "held" in self.__dict__:
            x = x * next(self.held)
        return super().forward(x)


class Counts(Net):
    """It counts its calls in a module: in one that has no count yet, or in one that has."""

    def __init__(self, moves: bool) -> None:
        super().__init__()
        self.moves = moves

    def train(self, mode: bool = True) -> Counts:
        global counter
        if self.moves:
            counter = second
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        counter.calls = getattr(counter, "calls", 0) + 1  # type: ignore[attr-defined]
        return super().forward(x)


class Compares(Net):
    """It goes another way if two iterators are one."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.j = iter([1.0]), iter([1.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if self.i is self.j else super().forward(x)


def test_an_iterator_that_train_brings_is_not_taken_from() -> None:
    model = Takes()
    with pytest.raises(UntraceableError, match="takes from an iterator"):
        run(model, torch.ones(2, 3), True)
    assert list(model.kept[0]) == [1.0, 2.0]


@pytest.mark.parametrize("way", ["replaced", "deleted", "global"])
def test_what_train_puts_in_the_place_of_an_iterator_is_read(way: str) -> None:
    model = Replaces(way)
    before = model.held, factor
    flow = run(model, torch.ones(2, 3), True)
    names = [call.name for call in flow.calls]
    assert names == [*(["mul"] if way != "deleted" else []), "linear", "relu", "linear"]
    assert (model.held, factor) == before


@pytest.mark.parametrize("moves", [False, True])
def test_what_a_module_is_given_may_decide_the_next_way(moves: bool) -> None:
    for module in (first, second):
        vars(module).pop("calls", None)
    assert traces(Counts(moves))[0].turned
    (found,) = metaopt.symmetries(Counts(moves))
    assert "in later calls what it did in the first" in str(found.assumes)


def test_two_hidden_iterators_are_two() -> None:
    for trace in traces(Compares()):
        assert [str(node) for node in trace.graph.nodes if node.op == "call_module"] == ["a", "b"]
