"""Symmetries of real models: the search leaves a model, and what its code holds, as it was."""

from __future__ import annotations

import functools
import itertools
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
import torch
from hidden_weights import Pair
from teleports import change, differ, every_specimen, names_found, outputs, reason_for
from torch import Tensor, fx, nn
from torch.nn import functional
from zoo import ZOO

import metaopt
from metaopt.symmetry.units import units_of

SEEN: list[Any] = []
COUNT = 0
CONTEXT: ContextVar[Any] = ContextVar("hidden", default=None)


class _Slotted:
    __slots__ = ("hidden",)
    hidden: Any


class _Writing(Pair):
    """Writes wherever code can write."""

    calls = 0
    last: Any = None

    def prepare(self) -> None:
        self.items: list[Any] = []
        self.nested: dict[str, Any] = {"deep": [[]]}
        self.members: set[Any] = set()
        self.queue: deque[Any] = deque(maxlen=2)
        self.grouped: dict[str, list[Any]] = defaultdict(list)
        self.ordered: dict[str, Any] = OrderedDict()
        self.weak: Any = weakref.WeakKeyDictionary()
        self.plain = types.SimpleNamespace()
        self.slotted = _Slotted()
        self.array = np.zeros(2)
        self.steps = 0
        self.gone = 1
        self.kept_in_cell()

    def kept_in_cell(self) -> None:
        count, seen = 0, list[Any]()

        def note(hidden: Any) -> None:
            nonlocal count
            count += 1
            seen.append(hidden)

        self.note, self.noted = note, lambda: (count, len(seen))

    def forward(self, x: Tensor) -> Tensor:
        global COUNT
        h = functional.relu(self.fc1(x))
        self.items.append(h)
        self.nested["deep"][0].append(h)
        self.members.add(h)
        self.queue.append(h)
        self.grouped["h"].append(h)
        self.ordered["h"] = self.weak[self.fc1] = self.plain.hidden = self.slotted.hidden = h
        self.array[0] += 1
        self.steps += 1
        self.hidden = self.fc1.hidden = h
        self.register_buffer("buffer", torch.zeros(1))
        self.added = nn.ReLU()
        self.fc2.register_forward_hook(lambda *_: None)
        self.train(not self.training)
        self.__dict__.pop("gone", None)
        type(self).calls += 1
        _Writing.last = h
        SEEN.append(h)
        COUNT += 1
        self.note(h)
        CONTEXT.set(h)
        _cached(h)
        return self.fc2(h)

    def held(self) -> list[Any]:
        """All of it, to compare."""
        self_held = {n: v for n, v in vars(self).items() if n not in ("noted", "note")}
        return [
            repr([sorted(self_held), self.items, self.nested, self.members, self.queue]),
            repr([self.grouped, self.ordered, dict(self.weak), self.plain, self.array, self.steps]),
            [sorted(vars(module)) for module in self.modules()],
            [list(module._forward_hooks) for module in self.modules()],
            [module.training for module in self.modules()],
            [list(self._modules), list(self._buffers), hasattr(self.slotted, "hidden")],
            [CONTEXT.get()],
            [self.calls, self.last, list(SEEN), COUNT, self.noted(), _cached.cache_info().currsize],
        ]


@functools.lru_cache
def _cached(hidden: Any) -> int:
    return 0


@pytest.mark.parametrize("example", [None, torch.ones(3, 4)], ids=["traced", "tried"])
def test_what_forward_writes_is_not_there_afterwards(example: Tensor | None) -> None:
    model = _Writing()
    model.fc1.eval()
    before = model.held()
    found = metaopt.symmetries(model, example)
    assert [s.name for s in found] == ["fc1 -> fc2"]
    assert model.held() == before


class _Raising(Pair):
    """Changes itself, and then gives up."""

    error: type[BaseException] = AssertionError

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        self.fc1.weight = None  # type: ignore[assignment]
        self.eval()
        raise self.error("no")


def test_a_model_that_cannot_be_traced_is_as_it_was() -> None:
    model = _Raising()
    weight = model.fc1.weight
    assert "no" in reason_for(metaopt.symmetries(model), "")
    model.error = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        metaopt.symmetries(model)
    assert model.fc1.weight is weight
    assert all(module.training for module in model.modules())
    assert not hasattr(model, "kept")


class _Drawing(Pair):
    def prepare(self) -> None:
        self.source = torch.Generator()

    def more(self, x: Tensor) -> Tensor:
        return x * float(torch.rand((), generator=self.source))


class _Taking(Pair):
    def prepare(self) -> None:
        self.numbers = itertools.count()

    def more(self, x: Tensor) -> Tensor:
        return x * next(self.numbers)


class _Counting(Pair):
    def prepare(self) -> None:
        self.count = torch.zeros(())

    def more(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


@pytest.mark.parametrize(
    ("make", "state", "reason"),
    [
        (_Drawing, lambda m: m.source.get_state().tolist(), "it draws random numbers"),
        (_Taking, lambda m: repr(m.numbers), "it takes from an iterator"),
        (_Counting, lambda m: float(m.count), "it changes a tensor outside of the trace"),
    ],
)
def test_what_cannot_be_kept_apart_is_refused(
    make: Callable[[], nn.Module], state: Callable[[Any], Any], reason: str
) -> None:
    model = make()
    before = state(model)
    assert reason in reason_for(metaopt.symmetries(model), "")
    assert state(model) == before


class _Buffered(Pair):
    """Counts its calls in a buffer, and works in place on its inputs."""

    count: Tensor

    def prepare(self) -> None:
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.fc2(functional.relu(self.fc1(x.mul_(2))))


def test_an_example_leaves_tensors_and_waiting_graphs() -> None:
    model, x = _Buffered(), torch.randn(6, 4)
    loss = model(x.clone()).square().sum()
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    inputs, places = x.clone(), [p.data_ptr() for p in model.parameters()]
    (found,) = metaopt.symmetries(model, x)
    assert found.assumes == ""
    assert all(torch.equal(t, before[path]) for path, t in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == places
    assert torch.equal(x, inputs)
    # Fails where weights were written to in the meantime.
    loss.backward()


# Names.


class _Alias(nn.Module):
    """A layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.net = nn.Sequential(self.fc, nn.ReLU(), nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _SharedEncoder(nn.Module):
    """An encoder with a normalisation, as a part of two networks; one of them is called."""

    def __init__(self) -> None:
        super().__init__()
        encoder = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.LayerNorm(3))
        self.networks = nn.ModuleDict(
            {name: nn.Sequential(encoder, nn.Linear(3, 2)) for name in ("first", "second")}
        )
        self.listed = nn.ModuleList([encoder[0]])
        self.held = [encoder]

    def forward(self, x: Tensor) -> Tensor:
        return self.networks["second"](x)


class _Twice(_Alias):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.fc(x).relu())


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (_Alias, ["fc -> net.2"]),
        (
            _SharedEncoder,
            [
                "networks.first.0.0 -> networks.first.0.2",
                "networks.first.0.2.weight",
                "networks.first.0.2.bias",
                "networks.first.0.3 -> networks.second.1",
            ],
        ),
        (_Twice, []),
    ],
)
def test_a_module_under_two_names_is_one_module(
    make: Callable[[], nn.Module], names: list[str]
) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(5, 2)
    before = outputs(model, x)
    found = metaopt.symmetries(model)
    assert [s.name for s in found] == names
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    metaopt.teleport(model, symmetries=found)
    assert change(before, outputs(model, x)) < 1e-5


# Devices.


@every_specimen
def test_the_default_device_changes_nothing(name: str) -> None:
    specimen = ZOO[name]
    plain, other = specimen.model().eval(), specimen.model().eval()
    x = specimen.inputs()
    found = metaopt.symmetries(plain, x)
    shapes = {path: parameter.shape for path, parameter in plain.named_parameters()}
    metaopt.teleport(plain, symmetries=found)
    with torch.device("meta"):
        assert str(metaopt.symmetries(other, x)) == str(found)
        metaopt.teleport(other, symmetries=found)
        units = units_of(found, shapes)
    assert not differ(plain, other)
    assert str(units) == str(units_of(found, shapes))
    assert not any(module.training for module in other.modules())


# Compiled models.


def _plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))


def _scripted() -> Any:
    return torch.jit.script(_plain())


def _jit_traced() -> Any:
    return torch.jit.trace(_plain(), torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [_scripted, _jit_traced])
def test_modules_compiled_by_torch_jit_are_unknown(make: Callable[[], Any]) -> None:
    compiled = make()
    assert "compiled by torch.jit" in reason_for(metaopt.symmetries(compiled), "")
    with pytest.warns(UserWarning, match="nothing is teleported"):
        metaopt.teleport(compiled)
    model = nn.Sequential(make(), *_plain())
    for training in (True, False):
        model.train(training)
        for example in (None, torch.randn(3, 4)):
            found = metaopt.symmetries(model, example)
            assert [s.name for s in found] == ["1 -> 3"]
            assert "compiled by torch.jit" in reason_for(found, "0")
            assert all(module.training == training for module in model.modules())


def test_graph_modules_are_searched() -> None:
    assert names_found(fx.symbolic_trace(_plain())) == ["positive scaling: 0 -> 2"]
