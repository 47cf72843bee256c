"""What a searched teleport carries along: gradients, optimizer state, drift that is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from searching import (
    DATA,
    Rosenbrock,
    given,
    mse,
    network,
    rotation,
    squared_gradient,
)
from torch import nn
from torch.nn import functional

import metaopt
from metaopt.landscape.between.tensors import tensors_of_model
from metaopt.teleport.drift import DriftError


@pytest.mark.parametrize("own", [False, True])
def test_the_next_step_is_that_of_a_run_begun_there(own: bool) -> None:
    model: nn.Module
    loss: Any
    chosen: Any
    if own:
        model, data, loss, chosen = Rosenbrock((-1.0, -1.0)), DATA, given, [rotation(Rosenbrock)]
    else:
        (model, data), loss, chosen = network(), mse, None

    def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, row: int) -> None:
        batch = data[0][row::4], data[1][row::4]
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss(model(batch[0] if len(batch[0]) else data[0]), batch[1]).backward()
        optimizer.step()

    rows = [0, 0, 0, 0] if own else [0, 1, 2, 3]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    for row in rows[:3]:
        stepped(model, optimizer, 0.0, row)
    report = metaopt.teleport(
        model,
        symmetries=chosen,
        objective="gradient_norm",
        loss=loss,
        data=data,
        optimizer=optimizer,
    )
    assert report.objective_after > 1.01 * report.objective_before
    assert "reset" not in report.state
    # The gradients that it holds have moved too.
    held = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    other = copy.deepcopy(model)
    begun = torch.optim.SGD(other.parameters(), lr=0.0, momentum=0.9)
    for row in rows[:3]:
        stepped(other, begun, 0.0, row)
    for G, p in zip(held, other.parameters(), strict=True):
        torch.testing.assert_close(G, p.grad, rtol=1e-9, atol=1e-12)
    stepped(model, optimizer, 1e-4, rows[3])
    stepped(other, begun, 1e-4, rows[3])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_adam_keeps_its_moments_under_scaling_and_resets_where_asked() -> None:
    for state in ("transport", "reset"):
        model, data = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        mse(model(data[0]), data[1]).backward()
        optimizer.step()
        report = metaopt.teleport(
            model, objective="gradient_norm", loss=mse, data=data, optimizer=optimizer, state=state
        )
        moved = [model[0].weight, model[0].bias, model[2].weight, model[2].bias, model[4].weight]
        assert all((p in optimizer.state) == (state == "transport") for p in moved)
        assert model[4].bias in optimizer.state
        assert ("reset for 5" in report.state) == (state == "reset")


def test_the_model_is_as_it_was_where_a_move_drifts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(0.1), nn.Linear(5, 3)).double()
    data = torch.randn(5, 6).double(), torch.randn(5, 3).double()
    fresh = torch.randn(20, 6).double(), torch.randn(20, 3).double()
    motions = metaopt.through_data(model, data)
    before = tensors_of_model(copy.deepcopy(model))
    given_search: dict[str, Any] = {"objective": "gradient_norm", "loss": mse, "data": data}
    with pytest.raises(DriftError, match=r"on fresh data by .* of their size, more than"):
        metaopt.teleport(model, symmetries=motions, fresh=fresh, **given_search)
    assert all(torch.equal(value, before[path]) for path, value in tensors_of_model(model).items())
    # As many samples as inputs: exact on these data, and on these alone.
    mse(model(data[0]), data[1]).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    report = metaopt.teleport(
        model,
        symmetries=motions,
        fresh=fresh,
        tolerance=math.inf,
        optimizer=optimizer,
        **given_search,
    )
    assert report.drift < 1e-12
    assert report.fresh_drift > 1e-2
    assert report.objective_after == pytest.approx(squared_gradient(model, data), rel=1e-9)
    assert report.objective_after > 1.1 * report.objective_before
    # Gradients after it are not known.
    assert "reset for 2" in report.state
    assert model[0].weight.grad is None


def test_more_samples_than_inputs_drift_on_the_data_themselves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.LeakyReLU(0.1), nn.Linear(5, 3))
    data = torch.randn(50, 2, 3), torch.randint(0, 3, (50,))
    motions = metaopt.through_data(model, data)
    with pytest.raises(DriftError, match="on the data by"):
        metaopt.teleport(
            model,
            symmetries=motions,
            objective="gradient_norm",
            loss=functional.cross_entropy,
            data=data,
        )


def test_float32_models_move_and_report() -> None:
    model, data = network(torch.float32)
    report = metaopt.teleport(model, objective="gradient_norm", loss=mse, data=[data, data])
    assert report.drift < 1e-5
    assert report.objective_after == pytest.approx(squared_gradient(model, data), rel=1e-3)
    assert "gradient_norm up" in str(report)
    assert [row["norm"] for row in report.rows()] == pytest.approx([0.5, 0.5])


def test_batch_normalisation_stays_as_it_was() -> None:
    torch.manual_seed(0)
    body = [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)]
    model = nn.Sequential(*body).double()
    data = torch.randn(30, 4).double(), torch.randn(30, 2).double()
    chosen = metaopt.symmetries(model)
    buffers = {path: b.clone() for path, b in model.named_buffers()}
    metaopt.teleport(
        model, symmetries=chosen, objective="gradient_norm", loss=mse, data=data, tolerance=1.0
    )
    moved = {slot.path for symmetry in chosen for slot in symmetry.slots}
    for path, buffer in model.named_buffers():
        assert path in moved or torch.equal(buffer, buffers[path])
