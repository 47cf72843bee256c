"""What a checkpoint says of the networks that a rule was meta-trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

import metaopt
from metaopt.base.streams import Stream
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.own import Family, Task
from metaopt.tasks.own_batch import LossFamily
from metaopt.tasks.regression import RegressionFamily
from metaopt.tasks.trained_on import trained_on


class Small(Family):
    """A network of the layers that are given, on four numbers."""

    def __init__(self, net: nn.Module, batch: int | None = None) -> None:
        self.net = net
        self.batch = batch

    def sample(self, generator: np.random.Generator) -> Task:
        weights = metaopt.fresh_weights(self.net, generator)
        return Task(weights, (torch.randn(8, 4), torch.zeros(8, 2)))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        return functional.mse_loss(functional_call(self.net, weights, (data[0],)), data[1])


class Around(Small):
    """A family in a family."""

    def __init__(self, own: Small) -> None:
        self.own = own
        self.batch = own.batch

    def sample(self, generator: np.random.Generator) -> Task:
        return self.own.sample(generator)


class Formula(Small):
    """No module."""

    def __init__(self) -> None:
        self.batch = None

    def sample(self, generator: np.random.Generator) -> Task:
        return Task({"w": torch.ones(5)}, (torch.ones(2),))


class TinyAttention(nn.Module):
    """A class whose name says what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(2, 2, bias=False)


def found_of(*families: Family) -> dict[str, object]:
    made = [LossFamily(own, "here:Here") for own in families]
    return trained_on([(one, one.drawn(Stream.TEST, 0, 0, 2).initial) for one in made])


def test_kinds_sizes_and_batches_over_all_families() -> None:
    deep = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2))
    wide = nn.Sequential(nn.Linear(4, 9), TinyAttention(), nn.Linear(9, 2, bias=False))
    assert found_of(Small(deep, batch=4), Around(Small(wide, batch=2))) == {
        "kinds": ["attention", "layer norm", "linear"],
        "parameters": [15 + 6 + 8, 45 + 4 + 18],
        "matrices": [[2, 2], [9, 4]],
        "batches": [2, 4],
    }


def test_frozen_layers_do_not_count() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    net[1].requires_grad_(False)
    assert found_of(Small(net))["kinds"] == ["linear"]


def test_formulas_vectors_and_full_batches() -> None:
    assert found_of(Formula()) == {
        "kinds": ["formulas without modules"],
        "parameters": [5, 5],
        "matrices": None,
        "batches": [None],
    }


def test_the_regression_family_is_a_chain_of_linear_layers() -> None:
    family = RegressionFamily(TaskConfig(layers=3, width=6, inputs=5, outputs=2, samples=4))
    drawn = family.drawn(Stream.TEST, 0, 0, 2)
    assert trained_on([(family, drawn.initial)]) == {
        "kinds": ["linear"],
        "parameters": [30 + 36 + 12, 30 + 36 + 12],
        "matrices": [[2, 6], [6, 6]],
        "batches": [None],
    }
