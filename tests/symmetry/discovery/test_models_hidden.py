"""Symmetries of real models: weights that are read by ways which no trace shows."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from hidden_weights import HIDDEN, Clipping, Opaque, Pair
from teleports import change, differ, names_found, outputs, reason_for
from torch import Tensor, nn
from torch.nn import functional

import metaopt
from metaopt.optim.within import chain_within
from metaopt.symmetry.units import units_of

WHY = (
    "changes the outputs on the example",
    "only permutations pass sum",
    "only permutations pass norm",
    "does with its output is not known here",
)
every_hidden = pytest.mark.parametrize("make", HIDDEN.values(), ids=HIDDEN)


def _both(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs in both modes."""
    return [y for training in (True, False) for y in outputs(model.train(training), x)]


@every_hidden
def test_a_weight_that_code_may_read_unseen_stays(make: Callable[[], nn.Module]) -> None:
    model, x = make(), torch.randn(5, 4)
    before = _both(model, x)
    kept = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match="nothing is teleported"):
        applied = metaopt.teleport(model, 1.0)
    assert all(torch.equal(tensor, kept[path]) for path, tensor in model.state_dict().items())
    assert change(before, _both(model, x)) == 0
    assert applied.skipped


@every_hidden
def test_a_learned_optimizer_has_no_units_there(make: Callable[[], nn.Module]) -> None:
    model = make()
    shapes = {path: parameter.shape for path, parameter in model.named_parameters()}
    assert units_of(metaopt.symmetries(model), shapes) is None


@every_hidden
def test_an_example_shows_it(make: Callable[[], nn.Module]) -> None:
    model, x = make(), torch.randn(5, 4)
    if isinstance(model, Clipping):
        # Bounded once, its weights are what they are.
        model(x)
    before = _both(model, x)
    found = metaopt.symmetries(model, x)
    (first,) = (path for path, _ in model.named_modules() if path in ("fc1", "0.fc1"))
    assert not any(slot.module == first for symmetry in found for slot in symmetry.slots)
    # The run shows what is done with the weight, or the example that the outputs change.
    why = ("its output leaves the model",) if isinstance(model, Clipping) else WHY
    assert any(part in reason_for(found, first) for part in why)
    metaopt.teleport(model, 1.0, symmetries=found)
    assert change(before, _both(model, x)) < 1e-5


class _Harmless(nn.Module):
    """Cannot be traced, and holds a weight that it does not read."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.kept = [weight]

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_an_example_settles_what_code_may_read() -> None:
    pair = Pair()
    model = nn.Sequential(pair.fc1, nn.ReLU(), pair.fc2, _Harmless(pair.fc1.weight))
    assert names_found(model) == ["positive scaling: 0 -> 2"]
    (assumed,) = metaopt.symmetries(model)
    assert assumed.assumes == "'0.weight' is not read by code of '3'"
    (settled,) = metaopt.symmetries(model, torch.randn(5, 4))
    assert settled.assumes == ""
    with pytest.warns(UserWarning, match=r"not read by code of '3'; to move it, pass symmetries="):
        assert not metaopt.teleport(model)


def test_code_that_holds_no_weight_assumes_nothing() -> None:
    pair, seen = Pair(), list[Tensor]()
    model = nn.Sequential(pair.fc1, nn.ReLU(), pair.fc2, nn.Tanh(), Opaque(torch.zeros(1)))
    model[3].register_forward_hook(lambda module, inputs, output: seen.append(output))
    (found,) = metaopt.symmetries(model)
    assert found.assumes == ""
    assert not seen


class _Stateful(Pair):
    """Reads the device of its weights, as many do, and calls a layer by a function of its own."""

    def prepare(self) -> None:
        self.layers = [self.fc1, self.fc2]
        self.first = lambda x: self.layers[0](x)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(next(self.parameters()).device)
        return self.layers[1](functional.relu(self.first(x)))


def test_what_is_seen_by_other_ways_moves() -> None:
    model, x = _Stateful(), torch.randn(5, 4)
    before = _both(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (applied,) = metaopt.teleport(model, 1.0)
    assert applied.name == "fc1 -> fc2"
    assert differ(model, _Stateful())
    assert change(before, _both(model, x)) < 1e-5


class _Inner(nn.Module):
    """Returns hidden units of a layer of torch's, beside what that returns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.layer.linear1(x)


def test_a_part_of_a_layer_that_is_called_by_itself_stays() -> None:
    found = metaopt.symmetries(_Inner())
    assert [f"{s.group}: {s.name}" for s in found] == [
        "general linear: layer.self_attn: query, key",
        "translation: layer.self_attn: key",
        "general linear: layer.self_attn: value, output",
        "translation: layer.self_attn: output",
        "translation: layer.linear2.weight",
        "translation: layer.linear2.bias",
    ]
    assert "its output leaves the model" in reason_for(found, "layer.linear1")


def test_hooks_on_all_modules_are_named() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, y: y + 1)
    try:
        found = metaopt.symmetries(Pair())
    finally:
        handle.remove()
    assert not found
    assert "forward hooks on all modules" in reason_for(found, "")


class _Chain(nn.Sequential):
    """Adds to its outputs what no layer of it makes."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + self.get_parameter("0.weight").sum()


@pytest.mark.parametrize("kind", [nn.Sequential, _Chain])
def test_a_chain_whose_weights_code_may_read_is_none(kind: type[nn.Sequential]) -> None:
    model = kind(*(nn.Linear(3, 3, bias=False) for _ in range(2)))
    model.insert(1, nn.LeakyReLU(0.1))
    found = chain_within(model, model, list(model.parameters()))
    assert isinstance(found, str) == (kind is _Chain)
    assert kind is nn.Sequential or "the model's __call__ reads no weights" in str(found)
