"""Symmetries of real models: what is found, and what a teleport keeps."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FEW, seeds
from teleports import (
    change,
    differ,
    every_moving,
    every_specimen,
    names_found,
    outputs,
    reason_for,
    teleported,
)
from torch import Tensor, nn
from zoo import ZOO

import metaopt
from metaopt.symmetry.discovery.flow import AS_ON_EXAMPLE
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.modules import tensor_at

# What is found.


@every_specimen
def test_found_and_left_alone(name: str) -> None:
    specimen = ZOO[name]
    found = metaopt.symmetries(specimen.model())
    assert tuple(f"{s.group}: {s.name}" for s in found) == specimen.found
    for module, reason in specimen.skipped.items():
        assert reason in reason_for(found, module)
        assert reason in str(found)


@every_specimen
def test_every_module_with_parameters_is_accounted_for(name: str) -> None:
    model = ZOO[name].model()
    found = metaopt.symmetries(model)
    first = dict(model.named_parameters())
    named = [path for s in found for path in s.modules] + [entry.module for entry in found.skipped]
    untold = [
        path
        for path, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
        # A slope belongs to the activation between two layers, which are told.
        and not isinstance(module, nn.PReLU)
        and not any(path == known or path.startswith(f"{known}.") for known in named)
        # A tensor of two names is told of under the first.
        and any(f"{path}.{name}" in first for name, _ in module.named_parameters(recurse=False))
    ]
    if untold:
        # All of a model that cannot be traced is left alone at once.
        assert not found
        assert [entry.module for entry in found.skipped] == [""]
        assert "cannot be traced" in reason_for(found, "")


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Of a module: what stands in its dictionaries (of hooks, of buffers) as it stands now."""
    return {
        name: list(value.items()) if isinstance(value, dict) else value
        for name, value in vars(module).items()
    }


@every_specimen
def test_discovery_leaves_the_model_as_it_was(name: str) -> None:
    model = ZOO[name].model().eval()
    next(iter(model.modules())).training = True
    attributes = {module: _attributes(module) for module in model.modules()}
    tensors = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    draws = torch.get_rng_state()
    metaopt.symmetries(model)
    assert torch.equal(draws, torch.get_rng_state())
    assert {module: _attributes(module) for module in model.modules()} == attributes
    for path, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[path])


@every_specimen
def test_example_confirms_what_was_found(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model()
    without, within = metaopt.symmetries(model), metaopt.symmetries(model, specimen.inputs())
    more = [s for s in within if AS_ON_EXAMPLE in s.assumes]
    # Of modules that traces do not enter a run shows more.
    assert tuple(f"{s.group}: {s.name}" for s in more) == specimen.shown
    assert [replace(s, assumes="") for s in without] == [s for s in within if s not in more]
    if specimen.shown or not specimen.found:
        x = specimen.inputs()
        assert change(outputs(model, x), outputs(teleported(model, 1.0, 3, within), x)) < 1e-5
    else:
        assert without.skipped == within.skipped


# What a teleport keeps.


@every_specimen
@settings(FEW, max_examples=4)
@given(
    seed=seeds,
    width=st.sampled_from([2, 8, 14]),
    norm=st.sampled_from([-1.0, 0.1, 0.5, 2.0]),
    training=st.booleans(),
)
def test_outputs_stay(name: str, seed: int, width: int, norm: float, training: bool) -> None:
    specimen = ZOO[name]
    model = specimen.model(width, seed).train(training)
    other = teleported(model, norm, seed)
    assert change(outputs(model, specimen.inputs()), outputs(other, specimen.inputs())) < 1e-5


@every_specimen
def test_without_a_list_all_moves_that_rests_on_no_assumption(name: str) -> None:
    model = ZOO[name].model()
    found = metaopt.symmetries(model)
    wanted = teleported(model, 0.5, 3, [s for s in found if not s.assumes])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        applied = metaopt.teleport(model, 0.5, 3)
    assert not differ(model, wanted)
    assert [s for s in found if not s.assumes] == list(applied)
    assert len(applied) + len(applied.skipped) == len(found) + len(found.skipped)


@every_moving
def test_outputs_stay_to_double_precision(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model().double()
    x = specimen.inputs(dtype=torch.float64)
    assert change(outputs(model, x), outputs(teleported(model), x)) < 1e-13


@every_moving
@pytest.mark.parametrize("norm", [0.5, -0.5])
def test_listed_modules_move_beyond_relabelling(name: str, norm: float) -> None:
    model = ZOO[name].model()
    other = teleported(model, norm)
    for symmetry in metaopt.symmetries(model):
        for module in symmetry.modules:
            slots = [slot for slot in symmetry.slots if slot.module == module]
            before, after = _units(model, symmetry, slots), _units(other, symmetry, slots)
            # Each unit from that of the old ones which is nearest: at most what a relabelling gets.
            apart = torch.cdist(after, before).amin(dim=2)
            assert float(apart.norm() / before.norm()) > 0.01


def _units(model: nn.Module, symmetry: Symmetry, slots: list[Slot]) -> Tensor:
    """What belongs to each unit of a hidden space, [blocks, size, any]."""
    stretches: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        stretches.append(x.permute(1, 2, 0, 3).flatten(2))
        return x.clone()

    for slot in slots:
        slot.apply(tensor_at(model, slot.path).detach(), symmetry.blocks, symmetry.size, keep)
    return torch.cat(stretches, dim=2).double()


@every_moving
def test_zero_norm_is_the_identity_and_the_inverse_returns(name: str) -> None:
    model = ZOO[name].model().double()
    found = metaopt.symmetries(model, permutations=True)
    same, there = teleported(model, 0.0, 3, found), teleported(model, 1.0, 3, found)
    back = teleported(there, -1.0, 3, found)
    assert differ(model, there)
    assert not differ(model, same)
    for w, v in zip(model.parameters(), back.parameters(), strict=True):
        torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "block", "cnn"])
def test_lower_precision_is_the_rounding_of_float64(name: str) -> None:
    model = ZOO[name].model().bfloat16()
    low, high = teleported(model), teleported(copy.deepcopy(model).double())
    for found, wanted in zip(low.parameters(), high.parameters(), strict=True):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, wanted.bfloat16())


def test_seeds_and_names_decide_the_elements() -> None:
    model = ZOO["autoencoder"].model()
    found = metaopt.symmetries(model)
    whole, part = teleported(model, seed=1), teleported(model, seed=1, symmetries=found[:1])
    assert torch.equal(whole.get_parameter("0.weight"), part.get_parameter("0.weight"))
    assert not torch.equal(
        whole.get_parameter("0.weight"), teleported(model, seed=2).get_parameter("0.weight")
    )
    moved = {p for p, w in model.named_parameters() if not torch.equal(w, part.get_parameter(p))}
    assert moved == {"0.weight", "0.bias", "2.weight"}


def test_generators_have_the_norm_asked_for() -> None:
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)).double()
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.eye(5))
    small = 1e-4
    g = teleported(model, small).get_parameter("0.weight")
    assert float(torch.linalg.matrix_norm(g.detach() - torch.eye(5))) == pytest.approx(
        small, rel=1e-3
    )


def test_residual_stream_is_untouched() -> None:
    specimen = ZOO["residual"]
    model = specimen.model().double()

    def stream(model: nn.Module) -> list[Tensor]:
        seen: list[Tensor] = []
        hooks = [
            model.get_submodule(path).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
            for path in ("norm", "head")
        ]
        outputs(model, specimen.inputs(dtype=torch.float64))
        for hook in hooks:
            hook.remove()
        return seen

    before, after = stream(model), stream(teleported(model))
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(before[1], after[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["cnn", "cnn 1d", "batch norm"])
def test_running_statistics_go_on_alike(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model().double()
    other = teleported(model)
    for twin in (model, other):
        outputs(twin, specimen.inputs(dtype=torch.float64))
    x = specimen.inputs(seed=2, dtype=torch.float64)
    assert change(outputs(model.eval(), x), outputs(other.eval(), x)) < 1e-13


# Groups.


PERMUTED = {
    "mlp": 1,
    "prelu": 2,
    "batch norm": 1,
    "layer norm": 1,
    "cnn": 2,
    "functional cnn": 2,
    "cnn 1d": 2,
    "autoencoder": 2,
    "image autoencoder": 2,
    "residual": 2,
    "cross attention": 3,
    "decoder": 3,
    "tied": 2,
    "reused": 2,
    "custom module": 2,
    "subclass": 2,
    "opaque module": 1,
    "heads": 1,
    "reading": 1,
    "recurrent": 1,
    "gelu": 1,
    "gated": 1,
    "stream": 2,
}
"""The number of permutations of units, streams and heads; none pass dropout, whose masks stay."""


@pytest.mark.parametrize("name", PERMUTED)
def test_permutations_are_exact_and_only_relabel(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model().double()
    found = [s for s in metaopt.symmetries(model, permutations=True) if s.group == "permutation"]
    assert len(found) == PERMUTED[name]
    other = teleported(model, 1.0, 5, found)
    x = specimen.inputs(dtype=torch.float64)
    for training in (True, False):
        model.train(training), other.train(training)
        assert change(outputs(model, x), outputs(other, x)) < 1e-13
    for w, v in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(w.flatten().sort().values, v.flatten().sort().values)
    assert differ(model, other)


def test_dropout_narrows_the_group() -> None:
    def pair(p: float) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.Dropout(p), nn.Linear(6, 2))

    assert names_found(pair(0.5)) == ["positive scaling: 0 -> 2"]
    assert names_found(pair(0.0)) == ["general linear: 0 -> 2"]


def test_a_smaller_group_can_be_chosen_and_a_larger_one_not() -> None:
    specimen = ZOO["autoencoder"]
    model = specimen.model()
    scaling, linear, _ = metaopt.symmetries(model)
    other = teleported(model, symmetries=[replace(linear, group=Group.SCALING)])
    ratio = other.get_parameter("2.weight") / model.get_parameter("2.weight")
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    with pytest.raises(ValueError, match="would change the outputs"):
        replace(scaling, group=Group.LINEAR)
