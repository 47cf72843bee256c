"""Which models are of one structure, and what a state of a curve must agree with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from metaopt import barrier, connect
from metaopt.landscape.between.structure import plain_models

CROSS = nn.functional.cross_entropy


def test_what_is_no_list_of_modules_is_refused() -> None:
    one: Any = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="must be a list of modules, found one Sequential"):
        plain_models(one)
    with pytest.raises(ValueError, match="model 1 is a OrderedDict"):
        plain_models([one, one.state_dict()])


def test_parametrised_modules_are_of_one_structure() -> None:
    models: list[nn.Module] = [weight_norm(nn.Linear(3, 2)) for _ in "ab"]
    data = (torch.randn(4, 3), torch.arange(4) % 2)
    curve = connect(models, loss=CROSS, data=data, steps=2)
    with torch.no_grad():
        assert torch.equal(curve.model(1.0)(data[0]), models[1](data[0]))
    assert barrier(models[0], models[0], CROSS, data, points=3).value < 1e-6
    with pytest.raises(ValueError, match=r"module '' is a Bilinear\(.*\) in model 1 and a Linear"):
        plain_models([nn.Linear(3, 2, bias=False), _bilinear()])


def test_settings_that_modules_print_are_part_of_the_structure_but_for_dropout() -> None:
    with pytest.raises(ValueError, match=r"module '0' is a LeakyReLU\(negative_slope=0.5\) in mod"):
        plain_models([nn.Sequential(nn.LeakyReLU(slope)) for slope in (0.1, 0.5)])
    plain_models([nn.Sequential(nn.Dropout(p)) for p in (0.1, 0.5)])


def _bilinear() -> nn.Module:
    found = nn.Bilinear(1, 1, 1, bias=False)
    found.weight = nn.Parameter(torch.zeros(2, 3))
    return found


def test_a_state_of_other_frozen_weights_or_buffers_is_refused(tmp_path: Path) -> None:
    def models(frozen: float, count: int) -> list[nn.Module]:
        found: list[nn.Module] = []
        for number in range(2):
            linear, norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
            nn.init.constant_(linear.weight, number)
            nn.init.constant_(linear.bias, frozen).requires_grad_(False)
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.fill_(count)
            found.append(nn.Sequential(linear, norm))
        return found

    def run(ends: list[nn.Module]) -> None:
        data = (torch.randn(4, 3), torch.arange(4) % 2)
        connect(ends, loss=CROSS, data=data, steps=2, folder=tmp_path)

    run(models(0, 0))
    for other in (models(1, 0), models(0, 1)):
        with pytest.raises(ValueError, match="holds the state of another curve"):
            run(other)
