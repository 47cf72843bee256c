"""Noise equilibria of units and matrices of which one side is empty."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from metaopt.landscape.noether import Flow, noether
from metaopt.symmetry.elements import Matrix
from metaopt.symmetry.modules import move, touches_of


def _data(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(40, inputs), torch.randn(40, outputs)
    return x.double(), y.double()


def _deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 4), nn.LeakyReLU(), nn.Linear(4, 6)
    ).double()


def _flows(model: nn.Module, inputs: int = 6, outputs: int = 6) -> dict[str, Flow]:
    torch.manual_seed(1)
    return noether(model, mse_loss, _data(inputs, outputs), 2, 0.1)


def test_a_unit_without_noise_stays_where_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)).double()
    with torch.no_grad():
        model.get_parameter("0.bias")[2] = -100
    flow = _flows(model)["0 -> 2"]
    assert flow.distance[2] == 0
    assert flow.rate[2] == 0
    assert flow.steps[2] == math.inf
    assert flow.remark == ""
    assert (flow.distance[[0, 1, 3, 4]] != 0).all()


def test_a_unit_that_is_not_read_runs_off_and_the_others_do_not() -> None:
    model = _deep()
    with torch.no_grad():
        model.get_parameter("4.weight")[:, 1] = 0
    flow = _flows(model)["2 -> 4"]
    # Its incoming gradients are 0: noise makes what reads it grow, as if it were moved by exp(-t).
    assert flow.noise[1] < 0
    assert flow.distance[1] == -math.inf
    assert flow.rate[1] == 0
    assert flow.distance[[0, 2, 3]].isfinite().all()
    assert "1 of 4 units" in flow.remark
    assert all(other.remark == "" for name, other in _flows(model).items() if name != "2 -> 4")


def test_what_only_such_units_read_runs_off_with_them() -> None:
    model = _deep()
    with torch.no_grad():
        model.get_parameter("4.weight")[:, 1] = 0
        # Unit 3 of the first layer is read by that unit alone.
        weight = model.get_parameter("2.weight")
        weight[:, 3] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    flows = _flows(model)
    assert flows["2 -> 4"].distance[1] == -math.inf
    assert flows["0 -> 2"].distance[3] == -math.inf
    assert flows["0 -> 2"].distance[[0, 1, 2, 4]].isfinite().all()


def test_wide_linear_layers_have_an_equilibrium_in_the_directions_that_they_use() -> None:
    """8 hidden units between 4 inputs and 4 outputs: both sides have rank 4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 4)).double()
    (flow,) = _flows(model, 4, 4).values()
    assert flow.remark == ""
    t = flow.distance[None]
    element = Matrix(torch.linalg.matrix_exp(t), torch.linalg.matrix_exp(-t))
    move(model, touches_of([(flow.symmetry, element)]))
    (there,) = _flows(model, 4, 4).values()
    assert there.noise.norm() < 1e-8 * flow.noise.norm()


def test_matrices_that_are_singular_in_different_directions_have_none() -> None:
    """5 hidden units, 2 outputs: 3 directions are not read, but have noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)).double()
    (flow,) = _flows(model, 6, 2).values()
    assert "ranks 5 and 2 of 5" in flow.remark
    assert flow.distance.isinf().all()
    assert not flow.rate.any()
