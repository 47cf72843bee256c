"""Level-set teleports: the constraint, the optimum, and Newton's direction there."""

from __future__ import annotations

import copy

import pytest
import torch
from searching import DATA, NOTHING, Booth, given
from torch import nn
from torch.nn import functional

import metaopt
from metaopt.landscape.samples import Samples
from metaopt.teleport.level_set import steepest


def test_booth_reaches_the_best_point_of_its_level_set() -> None:
    model = Booth()
    found = steepest(Samples(model, given, DATA), steps=60)
    assert found.squared_before == 2880
    assert found.squared_after == pytest.approx(5184, abs=1e-6)
    assert abs(found.loss_change) < 1e-9
    assert found.residual < 1e-6
    assert model.w.tolist() == [5, -5]
    # There the gradient is an eigenvector of the Hessian, of eigenvalue 18.
    with torch.no_grad():
        model.w.copy_(found.weights["w"])
    (G,) = torch.autograd.grad(model(NOTHING).sum(), [model.w])
    with torch.no_grad():
        model.w.sub_(G / 18)
    assert float(model(NOTHING).detach()) < 1e-10


@pytest.mark.parametrize("radius", [0.5, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_network_is_steeper_at_no_larger_loss(radius: float | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.GELU(), nn.Linear(20, 3)).to(dtype)
    data = torch.randn(60, 10, dtype=dtype), torch.randint(0, 3, (60,))
    optimizer = torch.optim.Adam(model.parameters())
    loss = functional.cross_entropy
    loss(model(data[0]), data[1]).backward()
    optimizer.step()
    before = copy.deepcopy(model)
    report = metaopt.teleport(
        model,
        objective="level_set",
        loss=loss,
        data=data,
        fresh=data,
        steps=20,
        max_norm=radius,
        optimizer=optimizer,
    )
    assert report.objective_after > 2 * report.objective_before
    eps = torch.finfo(dtype).eps
    start = float(loss(before(data[0]), data[1]).detach())
    assert float(loss(model(data[0]), data[1]).detach()) <= start + 100 * eps
    assert report.loss_change <= 100 * eps
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    far = torch.cat([(p - q).detach().flatten() for p, q in pairs]).norm()
    assert float(far) == pytest.approx(report.norms["level set"], rel=1e-5)
    if radius is not None:
        assert report.norms["level set"] <= radius * (1 + 1e-6)
    # Outputs change, for it is no symmetry, and so nothing that was known of gradients is kept.
    assert report.drift == report.fresh_drift > 0
    assert "reset for 4" in report.state
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())


def test_frozen_parameters_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model)
    data = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    metaopt.teleport(model, objective="level_set", loss=functional.mse_loss, data=data)
    stay = {path: torch.equal(p, q) for (path, p), q in zip(
        model.named_parameters(), before.parameters(), strict=True)}  # fmt: skip
    assert stay == {"0.weight": True, "0.bias": True, "2.weight": False, "2.bias": False}


def test_a_point_without_a_slope_is_refused() -> None:
    with pytest.raises(ValueError, match="finite and not 0"):
        metaopt.teleport(Booth((1.0, 3.0)), objective="level_set", loss=given, data=DATA)
    model = nn.Linear(2, 1).requires_grad_(False)
    data = torch.randn(3, 2), torch.randn(3, 1)
    with pytest.raises(ValueError, match="no parameter"):
        metaopt.teleport(model, objective="level_set", loss=functional.mse_loss, data=data)
    with pytest.raises(ValueError, match="leave maximise"):
        metaopt.teleport(Booth(), objective="level_set", loss=given, data=DATA, maximise=False)
