"""Symmetries that a user's family lists: used where they hold, and told where they do not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from families import CPU, own_config
from torch import Tensor, nn
from torch.func import functional_call

import metaopt
from metaopt.base.config import check
from metaopt.base.errors import UserError
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer

HERE = __name__


class Symmetric(metaopt.Family):
    """A two-layer network, with what is given for its symmetries."""

    batch = 4
    activation: type[nn.Module] = nn.ReLU

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(3, 4), self.activation(), nn.Linear(4, 2))
        self.symmetries = self.listed()

    def listed(self) -> Any:
        return metaopt.symmetries(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        x, y = (torch.from_numpy(generator.normal(size=(9, k))) for k in (3, 2))
        return metaopt.Task(metaopt.fresh_weights(self.net, generator), (x, y))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        x, y = data
        return (functional_call(self.net, weights, (x,)) - y).square().mean()


class Untrue(Symmetric):
    activation = nn.Tanh


class Strings(Symmetric):
    def listed(self) -> Any:
        return ["0 -> 2"]


class TheFunction(Symmetric):
    def listed(self) -> Any:
        return metaopt.symmetries


class Nothing(Symmetric):
    def listed(self) -> Any:
        return ()


class NoneFound(Symmetric):
    def listed(self) -> Any:
        return metaopt.symmetries(nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2)))


class OnlyRelabelled(Symmetric):
    activation = nn.Tanh

    def listed(self) -> Any:
        return metaopt.symmetries(self.net, permutations=True)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Untrue, "moving along them changes the loss by"),
        (Strings, "expected the list that metaopt.symmetries(network) returns"),
        (TheFunction, "expected the list that metaopt.symmetries(network) returns"),
        (Nothing, "add symmetries = metaopt.symmetries(network) to it"),
        (NoneFound, "metaopt.symmetries found none in its network"),
        (OnlyRelabelled, "the symmetries that its class lists allow no positive scaling"),
    ],
)
def test_symmetries_that_are_none_end_in_a_line(family: type[metaopt.Family], message: str) -> None:
    units = {"kind": "unit_lstm", "hidden": 3, "outer_lr": 1e-3}
    layer = {"kind": "layer_lstm", "hidden": 3, "outer_lr": 1e-3}
    content = own_config(family=f"{HERE}:{family.__name__}")
    content |= {
        "rules": {"update": layer, "teleport": units},
        "teleporter": {"action": "units", "guard": "none"},
    }
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        MetaTrainer(check(TrainConfig, content, "own"), CPU)
    assert "\n" not in str(caught.value)
    fitting = content | {"task": {"family": f"{HERE}:Symmetric", "options": None}}
    window = MetaTrainer(check(TrainConfig, fitting, "own"), CPU).outer_step()
    assert window.teleports["norm_mean"] > 0
    assert window.teleports["drift_max"] < 1e-5
