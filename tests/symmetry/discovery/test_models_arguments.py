"""Symmetries of real models: arguments of an operation that decide what passes it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from teleports import change, names_found, outputs, teleported
from torch import Tensor, nn
from torch.nn import functional

import metaopt


class _Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def _layers(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 3))


def _images(layer: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 1), layer, nn.ReLU(), nn.Conv2d(channels, 2, 1))


FLAT, IMAGES = (5, 4), (2, 3, 5, 5)


@pytest.mark.parametrize(
    ("model", "shape", "found"),
    [
        (_layers(nn.Hardtanh(-2, 2)), FLAT, ["sign flips: 0 -> 2"]),
        (_layers(nn.Hardtanh(-1, 2)), FLAT, []),
        (_layers(nn.ReLU6()), FLAT, []),
        (_Between(lambda x: functional.hardtanh(x, -1.0, 2.0)), FLAT, []),
        (_Between(lambda x: torch.special.i1(x).amin(0, keepdim=True)), FLAT, []),
        (
            _Between(lambda x: functional.normalize(x, dim=-1)),
            FLAT,
            ["orthogonal: a -> b", "positive scaling: a"],
        ),
        (
            _Between(lambda x: functional.normalize(x, dim=-1, eps=1.0)),
            FLAT,
            ["orthogonal: a -> b"],
        ),
        (
            _images(nn.ConvTranspose2d(6, 4, 3, groups=2), 4),
            IMAGES,
            ["positive scaling: 0 -> 1", "positive scaling: 1 -> 3"],
        ),
        (
            _images(nn.ConvTranspose2d(6, 6, 3, groups=6), 6),
            IMAGES,
            ["positive scaling: 0 -> 1", "positive scaling: 1 -> 3"],
        ),
    ],
)
def test_arguments_decide(model: nn.Module, shape: tuple[int, ...], found: list[str]) -> None:
    model = model.double()
    x = torch.randn(shape, dtype=torch.float64)
    assert names_found(model) == found
    assert names_found(model, example=x) == found
    other = teleported(model, symmetries=metaopt.symmetries(model, permutations=True))
    assert change(outputs(model, x), outputs(other, x)) < 1e-12


def test_rows_of_bounded_norm_stay() -> None:
    model = nn.Sequential(nn.Embedding(7, 6, max_norm=1.0), nn.Linear(6, 3))
    found = metaopt.symmetries(model, permutations=True)
    assert not found
    assert "bounds the norms of its rows" in str(found)


def test_slopes_of_channels_are_permuted_where_units_are_channels() -> None:
    model = _layers(nn.PReLU(6))
    nn.init.uniform_(model.get_parameter("1.weight"))
    assumed = metaopt.symmetries(model, permutations=True)[-1]
    assert (assumed.group, assumed.name) == ("permutation", "0 -> 2")
    assert assumed.assumes == "'1' reads [batch, features]"
    for x, is_true in ((torch.randn(5, 4), True), (torch.randn(3, 6, 4), False)):
        moved = teleported(copy.deepcopy(model), 1.0, 0, [assumed])
        assert (change(outputs(model, x), outputs(moved, x)) < 1e-5) == is_true
        found = metaopt.symmetries(model, x, permutations=True)
        assert [s.group == "permutation" for s in found] == [False, True][: 1 + is_true]
