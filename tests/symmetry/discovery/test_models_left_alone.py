"""Symmetries of real models: what stands against them, and what is said about it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from places import ROOT
from support import signed
from teleports import differ, names_found, reason_for, refusal, teleported
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from zoo import ZOO
from zoo_models import LinearOnly

import metaopt


def _pair(seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(signed(*parameter.shape, seed=seed + i))
    return model


def _frozen(model: nn.Sequential) -> None:
    model[2].requires_grad_(False)


def _hooked(model: nn.Sequential) -> None:
    model[1].register_forward_hook(lambda module, inputs, output: output + 1)


def _replaced(model: nn.Sequential) -> None:
    model[2].forward = lambda x: x[:, :2]


def _normed(model: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(model[2])


def _pruned(model: nn.Sequential) -> None:
    prune.random_unstructured(model[2], "weight", 0.5)


def _kept_elsewhere(model: nn.Sequential) -> None:
    model.register_buffer("view", model.get_parameter("2.weight").detach()[:, 1:])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_frozen, "'2.weight' is frozen"),
        (_hooked, "'1' reads it, and its forward hooks may change what it computes"),
        (_replaced, "its forward is replaced on the instance"),
        (_normed, "ParametrizedLinear '2'"),
        (_pruned, "'2' reads it, and its forward hooks"),
        (_kept_elsewhere, "'2.weight' shares its memory with 'view'"),
    ],
)
def test_left_alone(spoil: Callable[[nn.Sequential], None], reason: str) -> None:
    model = _pair()
    assert names_found(model) == ["positive scaling: 0 -> 2"]
    spoil(model)
    found = metaopt.symmetries(model)
    assert not found
    assert reason in reason_for(found, "0")
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="nothing is teleported"):
        metaopt.teleport(model)
    assert all(torch.equal(tensor, before[path]) for path, tensor in model.state_dict().items())


def test_hooks_of_this_package_only_look() -> None:
    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None: ...

    model = _pair()
    for layer in model:
        layer.register_forward_pre_hook(partial(record))
    assert not names_found(model)
    record.__module__ = "metaopt.optim.optimizer"
    assert names_found(model) == ["positive scaling: 0 -> 2"]


def test_hooks_of_containers_are_not_run() -> None:
    model = nn.Sequential(_pair(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    seen: list[Any] = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    found = metaopt.symmetries(model)
    assert [s.name for s in found] == ["1 -> 3"]
    assert "it has forward hooks" in reason_for(found, "0")
    assert not seen


def test_exchanged_parts_of_a_transformer_layer() -> None:
    model = nn.TransformerEncoderLayer(6, 2, 8)
    model.linear2 = LinearOnly(8, 6)
    found = metaopt.symmetries(model)
    assert [s.name for s in found] == [
        "self_attn: query, key",
        "self_attn: key",
        "self_attn: value, output",
    ]
    assert "LinearOnly has no symmetry that is known here" in reason_for(found, "linear2")
    assert "LinearOnly 'linear2'" in reason_for(found, "linear1")


def test_parameters_in_one_vector_are_not_tied() -> None:
    model = _pair()
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())
    assert names_found(model) == ["positive scaling: 0 -> 2"]


def test_compiled_models_are_their_originals() -> None:
    model = _pair()
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    assert names_found(compiled) == names_found(model)
    wanted = teleported(model)
    metaopt.teleport(compiled)
    assert not differ(model, wanted)


class _Optional(nn.Module):
    """Returns its hidden units when asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 6)
        self.fc2 = nn.Linear(6, 2)

    def forward(self, x: Tensor, hidden: bool = False, *, gain: Tensor | None = None) -> Tensor:
        h = functional.relu(self.fc1(x))
        if hidden:
            return h
        return self.fc2(h if gain is None else h * gain)


def test_optional_arguments_are_named() -> None:
    (symmetry,) = metaopt.symmetries(_Optional())
    assert "required arguments alone" in symmetry.assumes
    assert "fc1 -> fc2: holds if forward is called with its required arguments" in refusal(
        _Optional()
    )
    # An example is one way of calling it.
    for example in (torch.randn(3, 4), (torch.randn(3, 4), False)):
        (tried,) = metaopt.symmetries(_Optional(), example)
        assert tried == symmetry


class _Masked(_Optional):
    """An optional mask that can be traced, and that reads the hidden units."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        h = functional.relu(self.fc1(x))
        return self.fc2(h if mask is None else h + mask)


def test_every_way_of_calling_counts() -> None:
    found = metaopt.symmetries(_Masked())
    assert not found
    assert "added to another value" in reason_for(found, "fc1")


class _Keywords(_Optional):
    """Passes on what it is given."""

    def forward(self, x: Tensor, **rest: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x, **rest)


class _Many(_Optional):
    """Takes its input from a tuple."""

    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc2(functional.relu(self.fc1(inputs[0])))


class _Leaking(_Optional):
    """Gives a layer what tracing cannot see."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        (weight, *_) = self.fc1.parameters()
        return self.fc2(functional.relu(self.fc1(x)) + self.fc2(weight.mT @ weight.new_ones(6, 6)))


@pytest.mark.parametrize(
    ("model", "names"),
    [(_Keywords(), ["fc1 -> fc2"]), (_Many(), ["fc1 -> fc2"]), (_Leaking(), [])],
    ids=["keywords", "many", "leaking"],
)
def test_forms_of_forward(model: nn.Module, names: list[str]) -> None:
    found = metaopt.symmetries(model)
    assert [symmetry.name for symmetry in found] == names
    assert names or "computes with parameters" in reason_for(found, "")


class _Random(_Optional):
    """Takes another way now and then."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        h = functional.relu(self.fc1(x))
        return self.fc2(h + 1 if float(torch.rand(())) < 0.5 else h)


def test_random_ways_are_not_taken() -> None:
    found = metaopt.symmetries(_Random())
    assert not found
    assert "random numbers" in reason_for(found, "")


def test_user_mistakes() -> None:
    model, found = _pair(), metaopt.symmetries(ZOO["mlp"].model())
    with pytest.raises(ValueError, match=r"needs 8 entries on axis 0 of '0\.weight'"):
        metaopt.teleport(model, symmetries=found)
    with pytest.raises(ValueError, match=r"no tensor '3\.weight'"):
        metaopt.teleport(model, symmetries=found[1:])
    with pytest.raises(ValueError, match="norm must be finite, found nan"):
        metaopt.teleport(model, float("nan"))
    with pytest.raises(ValueError, match="seed must not be negative, found -1"):
        metaopt.teleport(model, seed=-1)


def test_list_prints_and_edits() -> None:
    found = metaopt.symmetries(ZOO["block"].model())
    assert str(found).startswith("6 symmetries, orbit of dimension 62\n")
    assert "2 x 3  attention: query, key" in str(found)
    rows = [row.split("  ")[-1] for row in repr(found).splitlines() if "output of fc2" in row]
    assert [row.strip() for row in rows] == ["is added to another value"]
    found.pop(0)
    assert isinstance(found, list)
    assert len(metaopt.teleport(ZOO["block"].model(), symmetries=found)) == 5


@pytest.mark.parametrize("permutations", [False, True])
@pytest.mark.parametrize("name", list(ZOO))
def test_nothing_stands_both_as_found_and_as_left_alone(name: str, permutations: bool) -> None:
    found = metaopt.symmetries(ZOO[name].model(), permutations=permutations)
    # Of what is only shifted, or changes its sign, it is said why it does not scale.
    lesser = ("translation", "sign flips")
    moving = [symmetry for symmetry in found if symmetry.group not in lesser]
    makers = {slot.module for symmetry in moving for slot in symmetry.incoming}
    assert not makers & {skipped.module for skipped in found.skipped}
    moved = {path for symmetry in moving for path in symmetry.modules}
    _, heads, *rows = str(found).splitlines()
    if not found:
        assert heads.split() == ["left", "alone", "why"]
        return
    assert heads.split() == ["group", "units", "made", "by", "->", "read", "by"]
    if found.skipped:
        names = [row[2:].split("  ")[0] for row in rows[-len(found.skipped) :]]
        assert not moved & {*names}


def test_the_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "guide" / "symmetries.md").read_text(encoding="utf-8")
    code, printed = (page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "text"))
    exec(compile(code, "symmetries.md", "exec"), {})
    assert capsys.readouterr().out == printed
