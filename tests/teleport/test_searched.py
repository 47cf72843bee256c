"""``metaopt.teleport`` with an objective: closed forms, exact values, what is carried along."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from searching import DATA, NOTHING, Booth, Rosenbrock, given, rotation
from torch import Tensor, nn
from torch.nn import functional

import metaopt
from metaopt.symmetry.motion import motions_of, moved_weights
from metaopt.teleport.drift import DriftError, tensors_at
from metaopt.teleport.searched import Request, objective_of

mse: Callable[[Any, Tensor], Tensor] = functional.mse_loss


def network(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    return model.to(dtype), (torch.randn(40, 4, dtype=dtype), torch.randn(40, 3, dtype=dtype))


def squared_gradient(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    loss = mse(model(data[0]), data[1])
    return float(sum(G.square().sum() for G in torch.autograd.grad(loss, list(model.parameters()))))


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
        model.w -= G / 18
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
    made, read = model[0], model[2]
    a = sum(float(p.grad.square().sum()) for p in made.parameters())
    b = float(read.weight.grad.square().sum())
    fixed = float(read.bias.grad.square().sum())
    r = 0.5
    best = fixed + max(a * math.exp(-2 * t) + b * math.exp(2 * t) for t in (r, -r))
    # The gradients that the parameters hold are enough, and move along.
    report = metaopt.teleport(model, objective="gradient_norm", max_norm=r)
    assert report.objective_after == pytest.approx(best, rel=1e-9)
    assert report.gradients == 0
    held = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert held == pytest.approx(best, rel=1e-9)
    assert squared_gradient(model, data) == pytest.approx(best, rel=1e-9)


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
    values = tensors_at(model)
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
    assert float(objective.at(moved)) == pytest.approx(float(value[0]), rel=1e-9)


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


def test_sharpness_and_curvature_go_both_ways() -> None:
    model, data = network()
    for name in ("sharpness", "curvature"):
        given_search: dict[str, Any] = {"objective": name, "loss": mse, "data": data}
        up = metaopt.teleport(copy.deepcopy(model), **given_search)
        down = metaopt.teleport(copy.deepcopy(model), maximise=False, **given_search)
        assert up.objective_before == down.objective_before
        assert down.objective_after < down.objective_before < up.objective_after
        assert max(up.drift, down.drift) < 1e-14


# What is carried along.


@pytest.mark.parametrize("own", [False, True])
def test_the_next_step_is_that_of_a_run_begun_there(own: bool) -> None:
    model: nn.Module = Rosenbrock((-1.0, -1.0))
    data, loss, symmetries = DATA, given, [rotation(Rosenbrock)]
    chosen: Any = symmetries
    if not own:
        model, data = network()
        loss, chosen = mse, None

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
    before = tensors_at(copy.deepcopy(model))
    given_search: dict[str, Any] = {"objective": "gradient_norm", "loss": mse, "data": data}
    with pytest.raises(DriftError, match=r"on fresh data by .* of their size, more than"):
        metaopt.teleport(model, symmetries=motions, fresh=fresh, **given_search)
    assert all(torch.equal(value, before[path]) for path, value in tensors_at(model).items())
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


def test_without_a_symmetry_nothing_moves() -> None:
    model = nn.Linear(3, 2)
    data = torch.randn(5, 3), torch.randn(5, 2)
    with pytest.warns(UserWarning, match="nothing is teleported"):
        report = metaopt.teleport(model, objective="gradient_norm", loss=mse, data=data)
    assert report.objective_before == report.objective_after > 0
    assert report.norms == {}


@pytest.mark.parametrize(
    ("given_search", "message"),
    [
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
