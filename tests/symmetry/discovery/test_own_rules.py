"""Rules of a user's own: for modules, for functions, with parameters."""

from __future__ import annotations

import pytest
import torch
from around import Around, seen
from teleports import change, outputs, teleported
from torch import Tensor, nn

import metaopt
from metaopt.symmetry.discovery.flow import AS_ON_EXAMPLE
from metaopt.symmetry.discovery.operation import Operation, Result

pytestmark = pytest.mark.usefixtures("rules_of_metaopt")


class _Half(nn.Module):
    """Positively homogeneous, in a way that no trace shows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(dim=0).values.clamp(min=0) if x.sum() > 1e9 else x.relu() * 0.5


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), _Half(), nn.Linear(6, 3))


def test_a_rule_for_a_module() -> None:
    assert not metaopt.symmetries(_net())

    @metaopt.symmetry_rule(_Half)
    def half(op: Operation) -> Result:
        return op.homogeneous(op.value(0))

    for found in (metaopt.symmetries(_net()), metaopt.symmetries(_net(), torch.randn(5, 4))):
        assert [f"{s.group}: {s.name}" for s in found] == ["positive scaling: 0 -> 2"]
        assert not found[0].assumes
    x = torch.randn(5, 4)
    assert change(outputs(_net(), x), outputs(teleported(_net()), x)) < 1e-6


def test_a_rule_that_is_wrong_is_found_out_by_an_example() -> None:
    @metaopt.symmetry_rule(_Half)
    def wrong(op: Operation) -> Result:
        return op.value(0)

    assert [s.group for s in metaopt.symmetries(_net())] == ["general linear"]
    found = metaopt.symmetries(_net(), torch.randn(5, 4))
    assert not found
    assert "changes the outputs on the example" in str(found)


class _Squashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.special.i1(self.a(x)))


def test_a_rule_for_a_function() -> None:
    assert not metaopt.symmetries(_Squashed())

    @metaopt.symmetry_rule(torch.special.i1)
    def bessel(op: Operation) -> Result:
        return op.odd(op.value(0))

    found = metaopt.symmetries(_Squashed(), torch.randn(5, 4))
    assert [f"{s.group}: {s.name}" for s in found] == ["sign flips: a -> b"]


def test_what_is_no_operation_is_refused() -> None:
    for wrong in (3, Operation):
        with pytest.raises(TypeError, match="expected classes of modules, functions or their name"):
            metaopt.symmetry_rule(wrong)
    with pytest.raises(TypeError, match="_net is a Python function, which is followed inside"):
        metaopt.symmetry_rule(_net)


@torch.library.custom_op("metaopt_tests::halved", mutates_args=())
def _halved(x: Tensor) -> Tensor:
    return x.relu() * 0.5


@_halved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize("asks", [False, True])
def test_a_rule_for_a_custom_operation(asks: bool) -> None:
    model = Around(_halved, asks)
    assert seen(model) == []

    @metaopt.symmetry_rule(_halved)
    def halved(op: Operation) -> Result:
        return op.homogeneous(op.value(0))

    assert seen(model) == ["positive scaling: a -> b"]


class _LowRank(nn.Module):
    """y = U D x + b, by code that no trace shows."""

    def __init__(self, rank: int, width: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, width))
        self.up = nn.Parameter(torch.randn(width, rank))
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.up @ self.down).T + self.bias if x.sum() < 1e9 else x


def _low_rank(op: Operation) -> Result:
    inner = op.linear(op.value(0), op.own("down"), None)
    return op.linear(inner, op.own("up"), op.own("bias"))


@pytest.mark.parametrize("asks", [False, True])
def test_a_rule_for_a_layer_with_parameters(asks: bool) -> None:
    model = Around(_LowRank(2, 6), asks)
    metaopt.symmetry_rule(_LowRank)(_low_rank)
    x = torch.randn(5, 4)
    found = metaopt.symmetries(model, x if asks else None)
    assert [f"{s.group}: {s.name}, {s.size}" for s in found] == [
        "general linear: a -> inside.down, 6",
        "general linear: inside.down -> inside.up, 2",
        "general linear: inside.up, inside -> b, 6",
    ]
    # The rule speaks for all that the module's code reads.
    assert {s.assumes for s in found} == {AS_ON_EXAMPLE if asks else ""}
    before = outputs(model, x)
    metaopt.teleport(model, symmetries=found)
    assert change(before, outputs(model, x)) < 1e-5


class _Ungated(_LowRank):
    """A subclass, which may do something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid() if x.sum() < 1e9 else x


def test_a_rule_does_not_speak_for_subclasses() -> None:
    metaopt.symmetry_rule(_LowRank)(_low_rank)
    assert seen(Around(_Ungated(2, 6))) == []


@pytest.mark.parametrize("asks", [False, True])
def test_a_rule_does_not_speak_for_hooks(asks: bool) -> None:
    metaopt.symmetry_rule(_Half)(lambda op: op.homogeneous(op.value(0)))
    half = _Half()
    model = Around(half, asks)
    assert seen(model) == ["positive scaling: a -> b"]
    half.register_forward_hook(lambda module, given, output: output.sigmoid())
    assert seen(model) == []


class _Sloped(nn.Module):
    """|s| max(x, 0), with a slope for each unit, which may be another layer's as well."""

    def __init__(self, slopes: nn.Parameter) -> None:
        super().__init__()
        self.slopes = slopes

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() * self.slopes.abs() if x.sum() < 1e9 else x


@pytest.mark.parametrize("asks", [False, True])
def test_what_a_rule_does_not_ask_for_does_not_move(asks: bool) -> None:
    metaopt.symmetry_rule(_Sloped)(lambda op: op.homogeneous(op.value(0)))
    free = Around(_Sloped(nn.Parameter(torch.randn(6))), asks)
    assert seen(free) == ["positive scaling: a -> b"]
    tied = Around(nn.Identity(), asks)
    tied.inside = _Sloped(tied.a.bias)
    assert seen(tied) == []
    reasons = [skipped.reason for skipped in metaopt.symmetries(tied, torch.randn(5, 4)).skipped]
    assert reasons[0] == "the rule for _Sloped 'inside' does not ask for it"


class _Bent(nn.Module):
    """x + gelu(x): what a LayerNorm would not see of x, gelu(x) sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.gelu(x) if x.sum() < 1e9 else x


@pytest.mark.parametrize("asks", [False, True])
def test_a_rule_of_several_operations_passes_no_translation(asks: bool) -> None:
    metaopt.symmetry_rule(_Bent)(lambda op: op.add(op.value(0), op.curved(op.value(0))))
    norm = nn.LayerNorm(6, elementwise_affine=False)
    assert any("translation" in said for said in seen(Around(norm, asks)))
    assert seen(Around(nn.Sequential(_Bent(), norm), asks)) == []


class _Turned(nn.Module):
    """A rotation of pairs, after an odd function of one entry."""

    angles: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("angles", torch.linspace(0.3, 2.0, 3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.tanh().chunk(2, -1)
        c, s = self.angles.cos(), self.angles.sin()
        return torch.cat([a * c - b * s, a * s + b * c], -1) if x.sum() < 1e9 else x


@pytest.mark.parametrize("asks", [False, True])
def test_a_rule_of_several_operations_passes_no_rotation(asks: bool) -> None:
    @metaopt.symmetry_rule(_Turned)
    def turned(op: Operation) -> Result:
        x = op.odd(op.value(0))
        angles = op.own("angles")
        a, b = op.moved(x, lambda labels: labels.chunk(2, -1))
        parts = [op.add(op.multiply(a, angles), op.multiply(b, angles)) for _ in range(2)]
        return op.add(*parts)

    with pytest.raises(ValueError, match="3 coordinates on axis -1: its output has shape"):
        metaopt.symmetries(Around(_Turned(), asks=True), torch.randn(5, 4))
    assert all("rotation" not in said for said in seen(Around(_Turned())))


class _Two(nn.Module):
    """Two results, each of which scales."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x.relu(), x.abs()) if x.sum() < 1e9 else (x, x)


class _Pair(Around):
    def forward(self, x: Tensor) -> Tensor:
        if self.asks:
            _ = list(x)
        first, second = self.inside(self.a(x))
        return self.b(first - second)


def test_a_rule_for_several_results() -> None:
    @metaopt.symmetry_rule(_Two)
    def two(op: Operation) -> Result:
        return [op.homogeneous(op.value(0)), op.homogeneous(op.value(0))]

    x = torch.randn(5, 4)
    assert seen(_Pair(_Two(), asks=True)) == ["positive scaling: a -> b"]
    # A trace does not show that there are two: the example's run does.
    assert seen(_Pair(_Two())) == []
    assert [s.name for s in metaopt.symmetries(_Pair(_Two()), x)] == ["a -> b"]

    @metaopt.symmetry_rule(_Two)
    def one(op: Operation) -> Result:
        return op.homogeneous(op.value(0))

    with pytest.raises(ValueError, match="_Two 'inside' returned 1 of 2 tensors: expected a list"):
        metaopt.symmetries(_Pair(_Two(), asks=True), x)


def test_mistakes_in_a_rule_are_named() -> None:
    metaopt.symmetry_rule(_LowRank)(lambda op: op.module)
    with pytest.raises(TypeError, match="'inside' returned a _LowRank: expected a Value, a list"):
        metaopt.symmetries(Around(_LowRank(2, 6)))
    metaopt.symmetry_rule(_LowRank)(lambda op: op.own("weight"))
    with pytest.raises(KeyError, match="holds no tensor 'weight'; it holds: down, up, bias"):
        metaopt.symmetries(Around(_LowRank(2, 6)))


def test_a_rule_that_does_not_know_leaves_alone() -> None:
    metaopt.symmetry_rule(_LowRank)(lambda op: None)
    assert seen(Around(_LowRank(2, 6))) == []


def test_a_model_may_be_one_module_with_a_rule() -> None:
    metaopt.symmetry_rule(_LowRank)(_low_rank)
    assert seen(_LowRank(2, 4)) == ["general linear: down -> up"]
    shown = metaopt.symmetries(_LowRank(2, 4), torch.randn(5, 4))
    assert [s.name for s in shown] == ["down -> up"]
