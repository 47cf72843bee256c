"""Curves through trained networks: exact minima, gradients, ends, and a training that goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from rings import NOTHING, convolutional, images, places, ring, trained
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metaopt import Curve, connect, refresh_batchnorm
from metaopt.landscape.between import connect as connect_module
from metaopt.landscape.between.connect import drawn, start
from metaopt.landscape.between.control_points import ControlPoints
from metaopt.landscape.between.curve_training import CurveTraining, rate
from metaopt.landscape.between.layout import Layout

CROSS, MSE = nn.functional.cross_entropy, nn.functional.mse_loss


def joined(*models: nn.Module, **settings: Any) -> Curve:
    arguments: dict[str, Any] = {"loss": CROSS, "data": images(), "steps": 5, "batch_size": 16}
    return connect(models, **(arguments | settings))


@pytest.mark.parametrize(
    ("kind", "lr", "height", "mean"),
    [("bezier", 0.02, 4.5**0.5, 2 / 105), ("chain", 0.01, 1.5**0.5, 1 / 12)],
)
def test_the_ring_has_the_bends_of_theory(kind: str, lr: float, height: float, mean: float) -> None:
    ends = places((-1, 0), (1, 0))
    curve = connect(ends, kind=kind, loss=ring, data=NOTHING, steps=5000, lr=lr)
    x, y = curve.control_point(1)["w"].tolist()
    assert x == pytest.approx(0, abs=1e-3)
    assert abs(y) == pytest.approx(height, abs=1e-3)
    report = curve.evaluate(NOTHING, points=201)
    assert report.summary().mean == pytest.approx(mean, abs=5e-5)
    assert report.barrier < 0.26


def test_the_chord_of_the_ring_has_barrier_one() -> None:
    chord = connect(places((-1, 0), (1, 0)), bends=0, loss=ring, data=NOTHING)
    assert chord.evaluate(NOTHING).barrier == 1


def test_a_bend_leaves_the_saddle_that_a_symmetric_start_is_on() -> None:
    points = ControlPoints.of(places((-1, 0), (1, 0)))
    start(points, Layout("bezier", 1, "path", 2), seed=0)
    aside = points.parts[0].points[1]
    assert 0 < float(aside.norm()) < 0.01
    bent = connect(places((-1, 0), (1, 0)), loss=ring, data=NOTHING, steps=300, lr=0.02)
    assert abs(float(bent.control_point(1)["w"][1])) > 1


@pytest.mark.parametrize(("kind", "shape"), [("bezier", "path"), ("chain", "star")])
def test_ends_come_back_bit_for_bit(kind: str, shape: str) -> None:
    models = [trained(convolutional(seed), images(), 3) for seed in range(3)]
    curve = joined(*models, kind=kind, shape=shape, lr=0.1)
    for k, model in enumerate(models):
        found = curve.model(k / 2).state_dict()
        assert list(found) == list(model.state_dict())
        assert all(torch.equal(found[path], one) for path, one in model.state_dict().items())


@pytest.mark.parametrize("layout", [Layout("bezier", 2, "path", 2), Layout("chain", 1, "star", 3)])
def test_a_bend_has_its_coefficient_times_the_gradient_at_w(layout: Layout) -> None:
    models = [nn.Linear(3, 2).double() for _ in range(layout.ends)]
    points = ControlPoints.of(models)
    start(points, layout, seed=0)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    training = CurveTraining(models[0], points, layout, MSE, 0.9, 0.0)
    _, gradients, shares = training.gradient(0.3, x, y)
    found = torch.cat([one.flatten() for one in gradients[0]])
    rows = [row.clone().requires_grad_() for row in points.parts[0].points]
    weight, bias = points.parts[0].views(sum(c * rows[row] for row, c in shares))  # type: ignore[arg-type]
    MSE(nn.functional.linear(x, weight, bias), y).backward()
    for row, c in shares:
        torch.testing.assert_close(rows[row].grad, c * found, rtol=1e-12, atol=1e-15)


def test_steps_are_those_of_torch() -> None:
    layout = Layout("bezier", 2, "path", 2)
    models = [nn.Linear(3, 2).double() for _ in range(2)]
    points = ControlPoints.of(models)
    start(points, layout, seed=0)
    rows = [row.clone() for row in points.parts[0].points]
    bends = [rows[row].requires_grad_() for row in layout.bend_rows]
    optimizer = torch.optim.SGD(bends, lr=0.1, momentum=0.9)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    training = CurveTraining(models[0], points, layout, MSE, 0.9, 0.1)
    for u in (0.2, 0.9, 0.5):
        w = sum(c * rows[row] for row, c in layout.at(u))
        assert isinstance(w, Tensor)
        weight, bias = points.parts[0].views(w)
        loss = MSE(nn.functional.linear(x, weight, bias), y)
        optimizer.zero_grad()
        (loss + 0.05 * w.square().sum()).backward()
        optimizer.step()
        torch.testing.assert_close(training.step(u, x, y, 0.1), loss.detach())
    for row in layout.bend_rows:
        torch.testing.assert_close(points.parts[0].points[row], rows[row].detach())


def test_the_rate_is_flat_then_falls_then_stays() -> None:
    found = [rate(step, 1000) for step in (0, 500, 900, 999)]
    assert found == pytest.approx([1, 1, 0.01, 0.01])
    assert rate(700, 1000) == pytest.approx(0.505)


def test_t_is_uniform_and_does_not_depend_on_where_it_starts() -> None:
    numbers = list(islice(drawn(3, 0), 512))
    for block in (numbers[:256], numbers[256:]):
        assert sorted(int(256 * u) for u in block) == list(range(256))
    assert list(islice(drawn(3, 300), 100)) == numbers[300:400]
    assert numbers[:256] != numbers[256:]


def shuffled(own: bool) -> DataLoader:
    generator = torch.Generator().manual_seed(4) if own else None
    return DataLoader(TensorDataset(*images()), 16, shuffle=True, generator=generator)


@pytest.mark.parametrize(
    "settings",
    [
        lambda: {"batch_size": 20, "seed": 1},
        lambda: {"data": shuffled(own=False), "batch_size": None},
        lambda: {"data": shuffled(own=True), "batch_size": None},
        lambda: {"shape": "star", "kind": "chain", "weight_decay": 1e-3},
    ],
    ids=["pair", "loader", "loader with a generator", "star"],
)
def test_a_run_that_is_stopped_ends_in_the_same_bits(
    settings: Callable[[], dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_module, "SAVED_EVERY", 0.0)
    monkeypatch.setattr(connect_module, "SHOWN_EVERY", 0.0)
    models = [convolutional(seed, dropout=0.3) for seed in range(2)]
    whole = joined(*models, steps=11, folder=tmp_path / "whole", **settings())
    calls = iter(range(100))

    def failing(outputs: Tensor, y: Tensor) -> Tensor:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return CROSS(outputs, y)

    with pytest.raises(KeyboardInterrupt):
        joined(*models, steps=11, folder=tmp_path / "cut", **(settings() | {"loss": failing}))
    torch.randn(3)
    found = joined(*models, steps=11, folder=tmp_path / "cut", **settings())
    for one, other in zip(whole.points.parts, found.points.parts, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one.points, other.points, strict=True))
    files = {path.name for path in (tmp_path / "cut").iterdir()}
    assert {"state.pt", "curve.safetensors"} < files
    assert any(name.startswith("events.out.tfevents") for name in files)
    # It has ended: the loss, which would fail, is not called again.
    again = joined(*models, steps=11, folder=tmp_path / "cut", **(settings() | {"loss": failing}))
    assert torch.equal(again.points.parts[0].points[1], found.points.parts[0].points[1])
    with pytest.raises(ValueError, match="holds the state of another curve"):
        joined(*models, steps=12, folder=tmp_path / "cut", **settings())


def test_models_and_random_numbers_stay() -> None:
    models = [convolutional(seed, dropout=0.5) for seed in range(2)]
    models[0][3].eval()
    before, modes = copy.deepcopy(models), [m.training for m in models[0].modules()]
    numbers = torch.get_rng_state()
    joined(*models)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [module.training for module in models[0].modules()] == modes
    for model, old in zip(models, before, strict=True):
        state = model.state_dict()
        assert all(torch.equal(state[path], one) for path, one in old.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_trains_in_training_mode() -> None:
    class Seen(nn.Linear):
        modes: list[bool] = []  # noqa: RUF012

        def forward(self, x: Tensor) -> Tensor:
            self.modes.append(self.training)
            return super().forward(x)

    data = (torch.randn(4, 3), torch.arange(4) % 2)
    curve = connect([Seen(3, 2).eval(), Seen(3, 2).eval()], loss=CROSS, data=data, steps=2)
    assert Seen.modes == [True, True]
    assert not curve.model(0.5).training


class Words(nn.Module):
    """Whole numbers in, tied weights, one parameter that nothing reads, float64."""

    def __init__(self, seed: int, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(5, 4).double()
        self.head = nn.Linear(4, 5).double()
        if tied:
            self.head.weight = self.embedding.weight
        self.unread = nn.Parameter(torch.randn(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(1))


def test_tied_and_wide_parameters_and_whole_numbers_as_inputs() -> None:
    x = torch.arange(12).reshape(6, 2) % 5
    models = [Words(seed) for seed in range(2)]
    curve = connect(models, loss=CROSS, data=(x, x[:, 0]), steps=20, lr=0.1)
    found = curve.model(0.5)
    assert isinstance(found, Words)
    assert found.head.weight is found.embedding.weight
    assert {p.dtype for p in found.parameters()} == {torch.float64}
    one, other = (model.embedding.weight.detach() for model in models)
    moved = curve.weights(0.5)["embedding.weight"] - (one + other) / 2
    assert float(moved.norm()) > 0.05
    report = curve.evaluate((x, x[:, 0]), points=3)
    chord = connect(models, bends=0, loss=CROSS, data=(x, x[:, 0]))
    assert report.loss[1] < chord.evaluate((x, x[:, 0]), points=3).loss[1]
    assert 0 <= float(report.error[1]) <= 1


def test_what_does_not_train_stays_on_the_segment() -> None:
    models = [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)) for _ in range(2)]
    for model in models:
        model[0].requires_grad_(False)
        nn.init.zeros_(model.get_parameter("1.bias").requires_grad_(False))
    data = (torch.randn(8, 3), torch.arange(8) % 2)
    curve = connect(models, loss=CROSS, data=data, steps=20, lr=0.1)
    assert list(curve.points.constants) == ["1.bias"]
    moved = {}
    for path, value in curve.weights(0.5).items():
        one, other = (model.get_parameter(path).detach() for model in models)
        moved[path] = value - (one + other) / 2
    assert float(moved["0.weight"].norm()) < 1e-6
    assert float(moved["1.weight"].norm()) > 0.05


def test_statistics_that_are_not_refreshed_make_a_curve_look_bad() -> None:
    data = images()
    models = [trained(convolutional(seed), data) for seed in (0, 1)]
    curve = joined(*models, steps=60, lr=0.1)
    assert curve.evaluate(data, points=11).loss.max() < 0.25
    stale, fresh = curve.model(0.5), curve.model(0.5, data)
    losses = [float(CROSS(model(data[0]), data[1]).detach()) for model in (stale, fresh)]
    assert losses[0] > 2 * losses[1]
    refresh_batchnorm(stale, data)
    assert float(CROSS(stale(data[0]), data[1]).detach()) == losses[1]


def test_the_centre_of_a_star_is_joined_to_all() -> None:
    ends = places((-1, 0), (0.5, 0.75**0.5), (0.5, -(0.75**0.5)))
    settings: dict[str, Any] = {"loss": ring, "data": NOTHING, "steps": 2000, "lr": 0.01}
    curve = connect(ends, kind="chain", shape="star", **settings)
    centre = curve.control_point(3)["w"].requires_grad_()
    t = torch.linspace(0, 1, 201, dtype=torch.float64)[:, None]
    mean = torch.stack([ring((1 - t) * centre + t * end.w, t) for end in ends]).mean()
    (gradient,) = torch.autograd.grad(mean, centre)
    assert float(gradient.norm()) < 0.02
    assert mean < 0.2
    two = connect(ends[:2], kind="chain", shape="star", **settings)
    other = connect(ends[:2], kind="chain", **settings)
    torch.testing.assert_close(two.weights(0.5), other.weights(0.5), rtol=0, atol=0.02)


def test_models_of_another_structure_are_refused_by_the_first_parameter() -> None:
    data = images()
    for models, message in (
        ((nn.Linear(3, 2), nn.Linear(4, 2)), r"'weight' is float32 \[2, 4\] in model 1"),
        ((nn.Linear(3, 2), nn.Linear(3, 2, bias=False)), "model 1 has no parameter 'bias'"),
        ((nn.Linear(3, 2, bias=False), nn.Linear(3, 2)), "model 1 has a parameter 'bias'"),
        ((Words(0), Words(0, tied=False)), "model 1 has a parameter 'head.weight'"),
        ((nn.Linear(3, 2), nn.Linear(3, 2).double()), "'weight' is float64"),
        ((nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())), "module '0' is a Tanh in model 1"),
        ((nn.BatchNorm1d(2, affine=False), nn.Identity()), "no buffer 'running_mean'"),
    ):
        with pytest.raises(ValueError, match=message) as found:
            connect(models, loss=CROSS, data=data)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"lr": 0.0}, "lr must be finite and above 0, found 0.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, found 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and at least 0, found -1.0"),
        ({"seed": -1}, "seed must not be negative, found -1"),
        ({"batch_size": 49}, "batch_size must be from 1 to 48"),
        ({"data": [images()]}, "batch_size cuts a pair"),
        ({"data": [], "batch_size": None}, "data hold no batches"),
        ({"lr": 1e8, "steps": 40}, "the loss on the curve is nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        joined(convolutional(0), convolutional(1), **settings)


def test_models_with_nothing_to_train_are_refused() -> None:
    models = [nn.Linear(3, 2).requires_grad_(False) for _ in range(2)]
    with pytest.raises(ValueError, match="no parameter of the models requires a gradient"):
        connect(models, loss=CROSS, data=images())
    odd = [nn.ParameterDict({"weight": torch.zeros(2, dtype=torch.complex64)}) for _ in "ab"]
    with pytest.raises(ValueError, match="'weight' is complex"):
        connect(odd, loss=CROSS, data=images())


def test_data_may_be_mappings_and_tuples() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of_both = nn.Linear(3, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.of_both(a + b)

    a, b, y = torch.randn(4, 3), torch.randn(4, 3), torch.arange(4) % 2
    models = [Two(), Two()]

    def bend(inputs: Any) -> list[Tensor]:
        curve = connect(models, loss=CROSS, data=(inputs, y), steps=3, batch_size=2)
        curve.evaluate((inputs, y), points=3)
        return list(curve.control_point(1).values())

    for one, other in zip(bend((a, b)), bend({"b": b, "a": a}), strict=True):
        assert torch.equal(one, other)


def test_entries_that_all_ends_share_stay_bit_for_bit() -> None:
    one, other = nn.Linear(50, 2), nn.Linear(50, 2)
    other.load_state_dict(one.state_dict() | {"bias": torch.zeros(2)})
    one.weight.requires_grad_(False)[0, 0] += 1.0
    chord = connect([one, other], kind="chain", bends=0, loss=CROSS, data=images())
    for t in (0.1, 1 / 3, 0.77):
        found = chord.weights(t)["weight"].flatten()
        assert torch.equal(found[1:], one.weight.flatten()[1:])
        assert found[0] == pytest.approx(float(one.weight[0, 0]) - t)
