"""Symmetries of real models: what is found, what is left alone, and what a teleport keeps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FEW, seeds, signed
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils import _pytree as pytree
from zoo import ZOO, Specimen

import metaopt
from metaopt.models import Group, Slot, Symmetries, Symmetry
from metaopt.models.movement import tensor_at

ROOT = Path(__file__).resolve().parent.parent
MOVING = [name for name, specimen in ZOO.items() if specimen.found]
every_specimen = pytest.mark.parametrize("name", ZOO)
every_moving = pytest.mark.parametrize("name", MOVING)


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All of them, with the same masks of dropout each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return [y for y in pytree.tree_leaves(model(x)) if isinstance(y, Tensor)]


def _change(before: list[Tensor], after: list[Tensor]) -> float:
    assert all(x.dtype == y.dtype for x, y in zip(before, after, strict=True))
    changes = [(x - y).norm() / x.norm() for x, y in zip(before, after, strict=True)]
    return float(torch.stack(changes).max())


def _teleported(model: nn.Module, *arguments: Any, **options: Any) -> nn.Module:
    other = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        metaopt.teleport(other, *arguments, **options)
    return other


def _found(model: nn.Module, **options: Any) -> list[str]:
    return [f"{s.group}: {s.name}" for s in metaopt.symmetries(model, **options)]


def _reason(found: Symmetries, module: str) -> str:
    return "; ".join(entry.reason for entry in found.skipped if entry.module == module)


# What is found.


@every_specimen
def test_found_and_left_alone(name: str) -> None:
    specimen = ZOO[name]
    found = metaopt.symmetries(specimen.model())
    assert tuple(f"{s.group}: {s.name}" for s in found) == specimen.found
    for module, reason in specimen.skipped.items():
        assert reason in _reason(found, module)
        assert reason in str(found)


@every_specimen
def test_every_module_with_parameters_is_accounted_for(name: str) -> None:
    model = ZOO[name].model()
    found = metaopt.symmetries(model)
    named = [path for s in found for path in s.modules] + [entry.module for entry in found.skipped]
    for path, module in model.named_modules():
        if isinstance(module, nn.PReLU) or not any(True for _ in module.parameters(recurse=False)):
            continue
        assert any(path == known or path.startswith(f"{known}.") or not known for known in named)


@every_specimen
def test_discovery_leaves_the_model_as_it_was(name: str) -> None:
    model = ZOO[name].model().eval()
    next(iter(model.modules())).training = True
    attributes = {module: dict(module.__dict__) for module in model.modules()}
    tensors = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    draws = torch.get_rng_state()
    metaopt.symmetries(model)
    assert torch.equal(draws, torch.get_rng_state())
    assert {module: dict(module.__dict__) for module in model.modules()} == attributes
    for path, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[path])


@every_moving
def test_example_confirms_what_was_found(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model()
    without, within = metaopt.symmetries(model), metaopt.symmetries(model, specimen.inputs())
    assert list(without) == list(within)
    assert without.skipped == within.skipped


# What a teleport keeps.


@every_specimen
@settings(FEW, max_examples=6)
@given(
    seed=seeds,
    width=st.sampled_from([2, 8, 14]),
    norm=st.sampled_from([-1.0, 0.1, 0.5, 2.0]),
    training=st.booleans(),
)
def test_outputs_stay(name: str, seed: int, width: int, norm: float, training: bool) -> None:
    specimen = ZOO[name]
    model = specimen.model(width, seed).train(training)
    other = _teleported(model, norm, seed)
    assert _change(_outputs(model, specimen.inputs()), _outputs(other, specimen.inputs())) < 1e-5


@every_moving
def test_outputs_stay_to_double_precision(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model().double()
    x = specimen.inputs(dtype=torch.float64)
    assert _change(_outputs(model, x), _outputs(_teleported(model), x)) < 1e-13


@every_moving
@pytest.mark.parametrize("norm", [0.5, -0.5])
def test_listed_modules_move_beyond_relabelling(name: str, norm: float) -> None:
    model = ZOO[name].model()
    other = _teleported(model, norm)
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
    same, there = _teleported(model, 0.0, 3, found), _teleported(model, 1.0, 3, found)
    back = _teleported(there, -1.0, 3, found)
    assert _differ(model, there)
    assert not _differ(model, same)
    for w, v in zip(model.parameters(), back.parameters(), strict=True):
        torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-12)


def _differ(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return any(not torch.equal(w, v) for w, v in pairs)


@pytest.mark.parametrize("name", ["mlp", "block", "cnn"])
def test_lower_precision_is_the_rounding_of_float64(name: str) -> None:
    model = ZOO[name].model().bfloat16()
    low, high = _teleported(model), _teleported(copy.deepcopy(model).double())
    for found, wanted in zip(low.parameters(), high.parameters(), strict=True):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, wanted.bfloat16())


def test_seeds_and_names_decide_the_elements() -> None:
    model = ZOO["autoencoder"].model()
    found = metaopt.symmetries(model)
    whole, part = _teleported(model, seed=1), _teleported(model, seed=1, symmetries=found[:1])
    assert torch.equal(whole.get_parameter("0.weight"), part.get_parameter("0.weight"))
    assert not torch.equal(
        whole.get_parameter("0.weight"), _teleported(model, seed=2).get_parameter("0.weight")
    )
    moved = {p for p, w in model.named_parameters() if not torch.equal(w, part.get_parameter(p))}
    assert moved == {"0.weight", "0.bias", "2.weight"}


def test_generators_have_the_norm_asked_for() -> None:
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)).double()
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.eye(5))
    small = 1e-4
    g = _teleported(model, small).get_parameter("0.weight")
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
        _outputs(model, specimen.inputs(dtype=torch.float64))
        for hook in hooks:
            hook.remove()
        return seen

    before, after = stream(model), stream(_teleported(model))
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(before[1], after[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["cnn", "cnn 1d", "batch norm"])
def test_running_statistics_go_on_alike(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model().double()
    other = _teleported(model)
    for twin in (model, other):
        _outputs(twin, specimen.inputs(dtype=torch.float64))
    x = specimen.inputs(seed=2, dtype=torch.float64)
    assert _change(_outputs(model.eval(), x), _outputs(other.eval(), x)) < 1e-13


# Groups.


@pytest.mark.parametrize("name", ["batch norm", "layer norm", "cnn", "cnn 1d", "prelu", "gelu"])
def test_permutations_are_exact_and_only_relabel(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model().double()
    found = [s for s in metaopt.symmetries(model, permutations=True) if s.group == "permutation"]
    assert found
    other = _teleported(model, 1.0, 5, found)
    x = specimen.inputs(dtype=torch.float64)
    for training in (True, False):
        model.train(training), other.train(training)
        assert _change(_outputs(model, x), _outputs(other, x)) < 1e-13
    for w, v in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(w.flatten().sort().values, v.flatten().sort().values)
    assert _differ(model, other)


def test_dropout_narrows_the_group() -> None:
    def pair(p: float) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.Dropout(p), nn.Linear(6, 2))

    assert _found(pair(0.5)) == ["positive scaling: 0 -> 2"]
    assert _found(pair(0.0)) == ["general linear: 0 -> 2"]


def test_a_smaller_group_can_be_chosen_and_a_larger_one_not() -> None:
    specimen = ZOO["autoencoder"]
    model = specimen.model()
    scaling, linear, _ = metaopt.symmetries(model)
    other = _teleported(model, symmetries=[replace(linear, group=Group.SCALING)])
    ratio = other.get_parameter("2.weight") / model.get_parameter("2.weight")
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    with pytest.raises(ValueError, match="would change the outputs"):
        replace(scaling, group=Group.LINEAR)


# What moves like gradients.


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    leaves = pytree.tree_leaves(model(x))
    return torch.stack([(y - 1).square().sum() for y in leaves]).sum()


@every_moving
def test_gradients_move_to_those_at_the_new_weights(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model().double().eval()
    x = specimen.inputs(dtype=torch.float64)
    _loss(model, x).backward()
    metaopt.teleport(model, 1.0, 2, metaopt.symmetries(model))
    carried = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    _loss(model, x).backward()
    wanted = [p.grad for p in model.parameters() if p.grad is not None]
    for found, gradient in zip(carried, wanted, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)


def _sgd(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def _adam(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr, amsgrad=True)


def _adagrad(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=lr)


def _steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, specimen: Specimen, first: int = 0
) -> None:
    for seed in range(first, first + 3):
        optimizer.zero_grad()
        _loss(model, specimen.inputs(seed, dtype=torch.float64)).backward()
        optimizer.step()


@pytest.mark.parametrize("make", [_sgd, _adam, _adagrad], ids=["sgd", "adam", "adagrad"])
@pytest.mark.parametrize("name", ["autoencoder", "block", "cnn", "grouped"])
def test_transported_state_is_that_of_gradients_at_the_new_weights(
    name: str, make: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    # With a learning rate of 0 the state is that of several batches at one point.
    specimen = ZOO[name]
    model = specimen.model().double().eval()
    optimizer = make(model)
    _steps(model, optimizer, specimen)
    found = metaopt.symmetries(model)
    metaopt.teleport(model, 1.0, 2, found, optimizer=optimizer)
    fresh = make(model)
    _steps(model, fresh, specimen)
    general = {slot.path for s in found if s.group is Group.LINEAR for slot in s.slots}
    compared = 0
    for path, parameter in model.named_parameters():
        if make is not _sgd and path in general:
            assert parameter not in optimizer.state
            continue
        for key, wanted in fresh.state[parameter].items():
            torch.testing.assert_close(optimizer.state[parameter][key], wanted)
            compared += 1
    assert compared


@pytest.mark.parametrize("make", [_sgd, _adam], ids=["sgd", "adam"])
def test_training_commutes_with_permutations(
    make: Callable[[nn.Module, float], torch.optim.Optimizer],
) -> None:
    specimen = ZOO["cnn 1d"]
    first = specimen.model().double().eval()
    found = [s for s in metaopt.symmetries(first, permutations=True) if s.group == "permutation"]
    optimizer = make(first, 1e-3)
    _steps(first, optimizer, specimen)
    second = copy.deepcopy(first)
    other = make(second, 1e-3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    metaopt.teleport(first, 1.0, 0, found, optimizer=optimizer)
    _steps(first, optimizer, specimen, first=5)
    _steps(second, other, specimen, first=5)
    metaopt.teleport(second, 1.0, 0, found)
    for w, v in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(w, v, rtol=1e-9, atol=1e-9)


def test_reset_forgets_the_state_of_what_moves_alone() -> None:
    specimen = ZOO["residual"]
    model = specimen.model().double()
    optimizer = _sgd(model)
    _steps(model, optimizer, specimen)
    found = metaopt.teleport(model, optimizer=optimizer, state="reset")
    moved = {slot.path for s in found for slot in s.slots}
    kept = {path for path, p in model.named_parameters() if p in optimizer.state}
    assert moved
    assert kept == {path for path, _ in model.named_parameters()} - moved


def test_unknown_state_is_refused_before_anything_moves() -> None:
    model = ZOO["mlp"].model()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"found Rprop: use state='reset'"):
        metaopt.teleport(model, optimizer=torch.optim.Rprop(model.parameters()))
    with pytest.raises(ValueError, match="transport, reset, found 'keep'"):
        metaopt.teleport(model, optimizer=_sgd(model), state="keep")
    assert not _differ(model, before)


# What stands against it.


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
    assert _found(model) == ["positive scaling: 0 -> 2"]
    spoil(model)
    found = metaopt.symmetries(model)
    assert not found
    assert reason in _reason(found, "0")
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="nothing is teleported"):
        metaopt.teleport(model)
    assert all(torch.equal(tensor, before[path]) for path, tensor in model.state_dict().items())


def test_hooks_of_this_package_only_look() -> None:
    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None: ...

    model = _pair()
    for layer in model:
        layer.register_forward_pre_hook(partial(record))
    assert not _found(model)
    record.__module__ = "metaopt.torch_optim"
    assert _found(model) == ["positive scaling: 0 -> 2"]


def test_parameters_in_one_vector_are_not_tied() -> None:
    model = _pair()
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())
    assert _found(model) == ["positive scaling: 0 -> 2"]


def test_compiled_models_are_their_originals() -> None:
    model = _pair()
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    assert _found(compiled) == _found(model)
    wanted = _teleported(model)
    metaopt.teleport(compiled)
    assert not _differ(model, wanted)


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
    with pytest.warns(UserWarning, match="required arguments alone"):
        metaopt.teleport(_Optional())


class _Masked(_Optional):
    """An optional mask that can be traced, and that reads the hidden units."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        h = functional.relu(self.fc1(x))
        return self.fc2(h if mask is None else h + mask)


def test_every_way_of_calling_counts() -> None:
    found = metaopt.symmetries(_Masked())
    assert not found
    assert "added to another value" in _reason(found, "fc1")


class _Random(_Optional):
    """Takes another way now and then."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        h = functional.relu(self.fc1(x))
        return self.fc2(h + 1 if float(torch.rand(())) < 0.5 else h)


def test_random_ways_are_not_taken() -> None:
    found = metaopt.symmetries(_Random())
    assert not found
    assert "random numbers" in _reason(found, "")


def test_example_finds_units_on_another_axis() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    (symmetry,) = metaopt.symmetries(model, torch.randn(6, 5))
    assert symmetry.assumes == "'1' reads [batch, features]"
    found = metaopt.symmetries(model, torch.randn(6, 8, 5))
    assert not found
    assert "changes the outputs on the example" in _reason(found, "1")
    with pytest.warns(UserWarning, match=r"'1' reads \[batch, features\]"):
        metaopt.teleport(model)


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
    assert str(found).startswith("5 symmetries\n")
    assert "2 x 3  attention: query, key" in str(found)
    assert "fc2: its output is added to another value" in repr(found)
    found.pop(0)
    assert isinstance(found, list)
    assert len(metaopt.teleport(ZOO["block"].model(), symmetries=found)) == 4


def test_the_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "symmetries.md").read_text(encoding="utf-8")
    code, printed = (page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "text"))
    exec(compile(code, "symmetries.md", "exec"), {})
    assert capsys.readouterr().out == printed
