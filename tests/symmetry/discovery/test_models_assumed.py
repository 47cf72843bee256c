"""Symmetries of real models: what one assumes of inputs, and an example that settles it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from teleports import change, differ, outputs, reason_for, refusal, teleported
from torch import Tensor, nn

import metaopt


def test_example_finds_units_on_another_axis() -> None:
    model = _normalised()
    found = metaopt.symmetries(model, torch.randn(6, 8, 5))
    assert not found
    assert "changes the outputs on the example" in reason_for(found, "1")


def _normalised() -> nn.Sequential:
    """Fed [batch, 8, 5] it normalises positions, fed [batch, 5] features."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    nn.init.normal_(model.get_parameter("1.weight"))
    return model


@pytest.mark.parametrize("shape", [(6, 5), (6, 8, 5)], ids=["features", "positions"])
def test_without_a_list_nothing_rests_on_an_assumption(shape: tuple[int, ...]) -> None:
    model, x = _normalised(), torch.randn(shape)
    before = outputs(model, x)
    message = refusal(model)
    assert "1 -> 3: holds if '1' reads [batch, features]" in message
    assert "symmetries=metaopt.symmetries(model, example=x)" in message
    assert torch.equal(outputs(model, x)[0], before[0])
    (assumed,) = metaopt.symmetries(model)
    other = teleported(model, symmetries=[assumed])
    assert (change(before, outputs(other, x)) < 1e-5) == (shape == (6, 5))


def test_what_rests_on_no_assumption_moves_beside_what_does() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), *_normalised())
    model[2] = nn.Linear(6, 8)
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"^left alone: 3: 3 -> 5: holds if '3' reads \[batch,"):
        applied = metaopt.teleport(model)
    assert [s.name for s in applied] == ["0 -> 2"]
    assert "holds if '3' reads [batch, features]" in reason_for(applied, "3")
    moved = {
        path
        for path, p in model.named_parameters()
        if not torch.equal(p, before.get_parameter(path))
    }
    assert moved == {"0.weight", "0.bias", "2.weight"}


def test_an_example_settles_what_was_assumed_of_inputs() -> None:
    model, x = _normalised(), torch.randn(6, 5)
    assert [s.assumes for s in metaopt.symmetries(model)] == ["'1' reads [batch, features]"]
    found = metaopt.symmetries(model, example=x)
    assert [s.assumes for s in found] == [""]
    before = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metaopt.teleport(model, symmetries=found)
    assert differ(model, before)
    assert change(outputs(before, x), outputs(model, x)) < 1e-5


class _Viewed(nn.Module):
    """Cuts a batch into rows of 12 entries, whatever the size of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)
        self.fc = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(-1, 12))


def test_an_example_settles_the_size_of_images() -> None:
    assert "conv -> fc: holds if an image has 12 entries" in refusal(_Viewed())
    (symmetry,) = metaopt.symmetries(_Viewed(), torch.randn(2, 1, 2, 2))
    assert symmetry.assumes == ""
    found = metaopt.symmetries(_Viewed(), torch.randn(2, 1, 4, 2))
    assert not found
    assert "changes the outputs on the example" in reason_for(found, "conv")


def _without_head(model: nn.Sequential) -> nn.Module:
    nn.init.zeros_(model.get_parameter("3.weight"))
    return model


def _coarse(model: nn.Sequential) -> nn.Module:
    """Outputs nearly all of the bias, in a type that hides what is left."""
    nn.init.constant_(model.get_parameter("3.bias"), 100)
    return model.bfloat16()


@pytest.mark.parametrize("blind", [_without_head, _coarse])
@pytest.mark.parametrize("shape", [(6, 5), (6, 8, 5)], ids=["features", "positions"])
def test_an_example_that_would_not_show_a_change_settles_nothing(
    blind: Callable[[nn.Sequential], nn.Module], shape: tuple[int, ...]
) -> None:
    model = blind(_normalised())
    x = torch.randn(shape, dtype=model.get_parameter("0.weight").dtype)
    (symmetry,) = metaopt.symmetries(model, x)
    assert symmetry.assumes == "'1' reads [batch, features]"
