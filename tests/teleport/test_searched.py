"""``metaopt.teleport`` with an objective: closed forms, exact values, what is carried along."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from searching import (
    DATA,
    NOTHING,
    Booth,
    Rosenbrock,
    given,
    mse,
    network,
    rotation,
    squared_gradient,
)
from torch import Tensor, nn

import metaopt
from metaopt.landscape.between.tensors import tensors_of_model
from metaopt.symmetry.motion import motions_of, moved_weights
from metaopt.teleport.searched import Request, objective_of

# Test functions.


def test_booth_from_the_best_point_of_its_orbit_is_solved_in_one_step() -> None:
    model = Booth()
    assert float(model(NOTHING).detach()) == 144
    assert model.squared_gradient() == 2880
    report = metaopt.teleport(
        model,
        symmetries=[rotation(Booth)],
        objective="gradient_norm",
        loss=given,
        data=DATA,
        max_norm=None,
    )
    assert report.objective_before == pytest.approx(2880, abs=1e-9)
    assert report.objective_after == pytest.approx(5184, abs=1e-6)
    assert model.squared_gradient() == pytest.approx(5184, abs=1e-6)
    assert float(model(NOTHING).detach()) == pytest.approx(144, abs=1e-10)
    assert report.gradients == 1
    (G,) = torch.autograd.grad(model(NOTHING).sum(), [model.w])
    with torch.no_grad():
        model.w.sub_(G / 18)
    assert float(model(NOTHING).detach()) < 1e-12


@pytest.mark.parametrize("kind", [Booth, Rosenbrock])
def test_the_best_of_several_starts_is_the_best_of_a_grid(kind: type[Booth]) -> None:
    start = (-1.0, -1.0)
    own, weights = rotation(kind), {"w": kind(start).w.detach()}
    found = []
    for angle in torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64):
        found.append(own.weights(weights, angle[None])["w"])
    w = torch.stack(found, 1).requires_grad_()
    (G,) = torch.autograd.grad(kind.residuals(w).square().sum(), [w])
    best = float(G.square().sum(0).max())
    model = kind(start)
    given_search: dict[str, Any] = {"objective": "gradient_norm", "loss": given, "data": DATA}
    report = metaopt.teleport(
        model, symmetries=[own], max_norm=None, steps=30, starts=8, **given_search
    )
    assert report.objective_after == pytest.approx(best, rel=1e-6)
    assert report.objective_after >= best
    assert model.squared_gradient() == pytest.approx(report.objective_after, rel=1e-10)


def test_rosenbrock_at_its_start() -> None:
    model = Rosenbrock((-1.0, -1.0))
    assert float(model(NOTHING).detach()) == 404
    assert Rosenbrock.residuals(model.w).tolist() == [20, -2]
    (G,) = torch.autograd.grad(model(NOTHING).sum(), [model.w])
    assert G.tolist() == [40 * -1 * 20 + 2 * -2, -20 * 20]


# Closed forms.


@pytest.mark.parametrize("linear", [False, True])
def test_the_least_gradient_is_that_of_the_closed_form(linear: bool) -> None:
    model, data = network()
    if linear:
        model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)).double()
    other = copy.deepcopy(model)
    metaopt.balance(other, by="gradient", loss=mse, data=data)
    report = metaopt.teleport(
        model,
        objective="gradient_norm",
        loss=mse,
        data=data,
        maximise=False,
        max_norm=10,
        steps=100,
    )
    assert report.objective_after == pytest.approx(squared_gradient(other, data), rel=1e-6)
    assert report.objective_after == pytest.approx(squared_gradient(model, data), rel=1e-9)
    assert report.gradients == 1
    assert report.drift < 1e-14
    assert abs(report.loss_change) < 1e-14


def test_the_largest_gradient_of_one_scaled_unit_is_at_the_bound() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    data = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    mse(model(data[0]), data[1]).backward()
    squares = {path: float(p.grad.square().sum())
               for path, p in model.named_parameters() if p.grad is not None}  # fmt: skip
    a, b, fixed = squares["0.weight"] + squares["0.bias"], squares["2.weight"], squares["2.bias"]
    r = 0.5
    best = fixed + max(a * math.exp(-2 * t) + b * math.exp(2 * t) for t in (r, -r))
    # The gradients that the parameters hold are enough, and move along.
    report = metaopt.teleport(model, objective="gradient_norm", max_norm=r)
    assert report.objective_after == pytest.approx(best, rel=1e-9)
    assert report.gradients == 0
    held = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert held == pytest.approx(best, rel=1e-9)
    assert squared_gradient(model, data) == pytest.approx(best, rel=1e-9)


def test_ten_steps_on_a_million_parameters_cost_one_gradient() -> None:
    torch.manual_seed(0)
    body = [nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 256), nn.ReLU(), nn.Linear(256, 10)]
    model = nn.Sequential(*body)
    assert sum(p.numel() for p in model.parameters()) > 1_000_000
    symmetries = metaopt.symmetries(model)
    calls: list[bool] = []
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    data = torch.randn(32, 784), torch.randn(32, 10)
    report = metaopt.teleport(
        model, symmetries=symmetries, objective="gradient_norm", loss=mse, data=data, steps=10
    )
    assert report.objective_after > 1.02 * report.objective_before
    assert report.gradients == 1
    # One pass for the gradient, and two without a gradient for the drift.
    assert sorted(calls) == [False, False, True]


def test_a_random_element_of_equal_norm_is_no_better() -> None:
    model, data = network()
    best = metaopt.teleport(
        copy.deepcopy(model), objective="gradient_norm", loss=mse, data=data, steps=30
    )
    for seed in range(10):
        other = copy.deepcopy(model)
        metaopt.teleport(other, norm=0.5, seed=seed)
        assert squared_gradient(other, data) < best.objective_after


# Directions of ascent.


@pytest.mark.parametrize("name", ["gradient_norm", "sharpness", "curvature", "own"])
@pytest.mark.parametrize("through_data", [False, True])
def test_directions_hold_against_finite_differences(name: str, through_data: bool) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(0.1), nn.Linear(3, 2)).double()
    data = torch.randn(9, 4).double(), torch.randn(9, 2).double()
    chosen: Any = metaopt.through_data(model, data) if through_data else metaopt.symmetries(model)
    motions, _ = motions_of(chosen)
    request = Request(_norms if name == "own" else name, mse, data)
    samples = metaopt.landscape.samples.Samples(model, mse, data)
    objective = objective_of(model, request.objective, samples, motions, 0)
    values = tensors_of_model(model)
    evaluate = objective.along(motions, values)
    T = tuple(0.1 * torch.randn_like(motion.zero(values))[None] for motion in motions)
    way = tuple(torch.randn_like(t) for t in T)
    value, gradient = evaluate(T)
    rise = sum(float((G * d).sum()) for G, d in zip(gradient, way, strict=True))
    h = 1e-5
    ahead, behind = (
        float(evaluate(tuple(t + s * d for t, d in zip(T, way, strict=True)))[0][0])
        for s in (h, -h)
    )
    assert rise == pytest.approx((ahead - behind) / (2 * h), rel=1e-4, abs=1e-9)
    moved = moved_weights(motions, values, [t[0] for t in T])
    assert float(objective.at(moved).detach()) == pytest.approx(float(value[0]), rel=1e-9)


def _norms(model: nn.Module) -> Tensor:
    return torch.stack([p.square().sum() for p in model.parameters()]).sum()


def test_an_objective_may_differentiate_the_model_itself() -> None:
    model, data = network()
    for p in model.parameters():
        p.requires_grad_()

    def squared(model: nn.Module) -> Tensor:
        parameters = list(model.parameters())
        loss = mse(model(data[0]), data[1])
        found = torch.autograd.grad(loss, parameters, create_graph=True)
        return torch.stack([G.square().sum() for G in found]).sum()

    named = metaopt.teleport(
        copy.deepcopy(model), objective="gradient_norm", loss=mse, data=data, steps=5
    )
    own = metaopt.teleport(copy.deepcopy(model), objective=squared, steps=5)
    assert own.objective == "squared"
    assert own.objective_after == pytest.approx(named.objective_after, rel=1e-9)
    assert math.isnan(own.drift)


def test_sharpness_of_a_model_that_vmap_cannot_run() -> None:
    model, data = network()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        found = mse(outputs, targets)
        # A number on the host, which vmap refuses.
        return found if float(found.detach()) > 0 else 2 * found

    given_search: dict[str, Any] = {"objective": "sharpness", "data": data, "steps": 3}
    plain = metaopt.teleport(copy.deepcopy(model), loss=mse, **given_search)
    other = metaopt.teleport(copy.deepcopy(model), loss=loss, **given_search)
    assert other.objective_before == pytest.approx(plain.objective_before, rel=1e-9)
    assert other.objective_after == pytest.approx(plain.objective_after, rel=1e-9)


def test_sharpness_and_curvature_go_both_ways() -> None:
    model, data = network()
    for name in ("sharpness", "curvature"):
        given_search: dict[str, Any] = {"objective": name, "loss": mse, "data": data}
        up = metaopt.teleport(copy.deepcopy(model), **given_search)
        down = metaopt.teleport(copy.deepcopy(model), maximise=False, **given_search)
        assert up.objective_before == down.objective_before
        assert down.objective_after < down.objective_before < up.objective_after
        assert max(up.drift, down.drift) < 1e-14


def test_without_a_symmetry_nothing_moves() -> None:
    model = nn.Linear(3, 2)
    data = torch.randn(5, 3), torch.randn(5, 2)
    with pytest.warns(UserWarning, match="nothing is teleported"):
        report = metaopt.teleport(model, objective="gradient_norm", loss=mse, data=data)
    assert report.objective_before == report.objective_after > 0
    assert report.norms == {}


def other() -> nn.Module:
    """Another model."""
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))


@pytest.mark.parametrize(
    ("given_search", "message"),
    [
        ({"loss": mse, "data": DATA}, "give an objective"),
        ({"objective": "loudness"}, "one of gradient_norm, sharpness, curvature, level_set"),
        ({"objective": "gradient_norm", "loss": mse}, "data is missing"),
        ({"objective": "gradient_norm", "data": DATA}, "loss is missing"),
        ({"objective": "gradient_norm"}, "call backward"),
        ({"objective": "sharpness"}, "needs loss and data"),
        ({"objective": "level_set"}, "give loss and data"),
        ({"objective": "gradient_norm", "steps": 0}, "steps must be at least 1"),
        ({"objective": "gradient_norm", "starts": 0}, "starts must be at least 1"),
        ({"objective": "gradient_norm", "lr": -1.0}, "lr must be"),
        ({"objective": "gradient_norm", "max_norm": None}, "has no end"),
        ({"objective": "gradient_norm", "state": "kept"}, "state must be one of"),
        ({"objective": "gradient_norm", "seed": -1}, "seed must not be negative"),
        ({"objective": lambda model: torch.ones(2)}, "must give a scalar"),
        ({"objective": lambda model: torch.ones(())}, "does not depend"),
        ({"symmetries": [rotation(Booth)]}, "need an objective"),
        (
            {"objective": "curvature", "symmetries": metaopt.symmetries(other())},
            "has no tensor '1.weight'",
        ),
    ],
)
def test_mistakes_are_named(given_search: dict[str, Any], message: str) -> None:
    model, _ = network()
    with pytest.raises(ValueError, match=message):
        metaopt.teleport(model, **given_search)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), "found Tanh"),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "found ReLU"),
        (nn.Linear(3, 2), "found Linear"),
    ],
)
def test_models_that_the_action_through_data_does_not_fit(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metaopt.through_data(model, (torch.randn(5, 3), torch.randn(5, 2)))
