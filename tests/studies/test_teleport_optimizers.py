"""studies/teleport, optimizers: parity with torch, the action and its ascent, all in small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metaopt.base.errors import UserError
from metaopt.base.process import World
from studies.images import data_sets
from studies.teleport import __main__ as command
from studies.teleport import optimizers, training
from studies.teleport.action import (
    act,
    best_scales,
    drift,
    factors,
    follow,
    gradient_norm,
    pulled_back,
    search,
)
from studies.teleport.effects import by_second, effects
from studies.teleport.intervals import mean_interval, partial, pearson, ranks, share_interval
from studies.teleport.stack import (
    SLOPE,
    Layers,
    forward,
    gradients,
    initial,
    losses,
    mean_losses,
    squared_norm,
)
from studies.teleport.steps import OPTIMIZERS
from studies.teleport.training import NONE, RECIPE, RESET, STOP, Training, bounded_scales

SIZES = (7, 5, 4, 3)
TORCH = {
    "SGD": lambda p, lr: torch.optim.SGD(p, lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "AdaGrad": lambda p, lr: torch.optim.Adagrad(p, lr),
    "RMSProp": lambda p, lr: torch.optim.RMSprop(p, lr),
    "Adam": lambda p, lr: torch.optim.Adam(p, lr),
}


def stack(runs: int = 4) -> Layers:
    return [W.double() for W in initial(SIZES, range(runs))]


def images(groups: int, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, SIZES[0], samples, dtype=torch.float64, generator=draws)
    return x, torch.randint(SIZES[-1], (groups, samples), generator=draws)


def alone(layers: Layers, run: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for W in layers:
        layer = nn.Linear(W.shape[2], W.shape[1], bias=False, dtype=torch.float64)
        layer.weight.data = W[run].clone()
        modules += [layer, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_run_of_a_stack_is_that_of_torch(kind: str) -> None:
    layers = stack()
    rates = torch.tensor([1e-3, 1e-2, 3e-2, 1e-1])
    models = [alone(layers, run) for run in range(4)]
    theirs = [TORCH[kind](m.parameters(), float(rates[i].double())) for i, m in enumerate(models)]
    ours = OPTIMIZERS[kind](layers, rates)
    for step in range(8):
        x, y = images(2, 6, step)
        if step == 5:  # Of runs 1 and 3 alone, in the middle.
            ours.reset(slice(1, None, 2))
            for i in (1, 3):
                theirs[i] = TORCH[kind](models[i].parameters(), float(rates[i].double()))
        ours.step(layers, gradients(layers, x, y))
        for run, (model, optimizer) in enumerate(zip(models, theirs, strict=True)):
            optimizer.zero_grad()
            group = run // 2
            nn.functional.cross_entropy(model(x[group].mT), y[group]).backward()
            optimizer.step()
    for run, model in enumerate(models):
        for W, expected in zip(layers, model.parameters(), strict=True):
            torch.testing.assert_close(W[run], expected.data, rtol=1e-12, atol=1e-12)


def test_losses_of_many_images_are_those_of_all_at_once() -> None:
    layers = stack()
    x, y = images(1, 11)
    expected = losses(forward(layers, x)[-1], y)
    torch.testing.assert_close(mean_losses(layers, x, y, at_once=4), expected)


def generators(runs: int, size: float, seed: int = 3) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [
        size * torch.randn(runs, k, k, dtype=torch.float64, generator=draws) for k in SIZES[1:-1]
    ]


def test_the_action_is_exact_for_as_many_images_as_units() -> None:
    layers = stack()
    x, y = images(4, 4)
    moved, loss = drift(layers, act(layers, x, generators(4, 0.3)), x, y)
    assert float(moved.max()) < 1e-10
    assert float(loss.abs().max()) < 1e-10
    x, y = images(4, 40)
    assert float(drift(layers, act(layers, x, generators(4, 0.3)), x, y)[0].min()) > 1e-3


def test_the_ascent_direction_is_the_derivative_of_the_act() -> None:
    layers = stack()
    x, y = images(4, 30)
    objective = gradient_norm(x, y)
    _, slopes = objective(layers)
    for direction in range(3):
        T = generators(4, 1.0, direction)
        found = sum(
            ((G * D).sum((1, 2)) for G, D in zip(pulled_back(layers, x, slopes), T, strict=True)),
            torch.zeros(()),
        )
        h = 1e-5
        # One layer at a time: the derivative of each is taken with the others at 0.
        expected = torch.zeros(4, dtype=torch.float64)
        for hidden in range(2):
            ends = [
                objective(act(layers, x, [s * h * D * (i == hidden) for i, D in enumerate(T)]))[0]
                for s in (1, -1)
            ]
            expected += (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_search_climbs_and_stops() -> None:
    layers = stack()
    x, y = images(4, 30)
    rates = torch.tensor([1e-2, 1e-2, 1e-2, 0.0])
    found = search(layers, x, gradient_norm(x, y), rates)
    assert bool((found.values[1:, :3] > found.values[:-1, :3]).all())
    torch.testing.assert_close(found.layers[0][3], layers[0][3])
    stop = float(found.values[3].max())
    stopped = search(layers, x, gradient_norm(x, y), rates, stop=stop)
    going = stopped.values[:-1] <= stop
    assert bool(((stopped.norms[0] > 0) == (going & (rates > 0))).all())


def test_random_elements_go_as_far() -> None:
    layers = stack()
    x, _ = images(4, 4)
    units = [T / torch.linalg.matrix_norm(T, keepdim=True) for T in generators(4, 1.0)]
    norms = [torch.full((1, 4), 0.1), torch.full((1, 4), 0.2)]
    moved = follow(layers, x, units, norms)
    torch.testing.assert_close(moved[0], layers[0] + 0.1 * units[0] @ layers[0])


def test_scaling_finds_the_best_corner_and_carries_state() -> None:
    layers = stack(2)
    x, y = images(2, 30)
    slopes = gradients(layers, x, y)
    bounds = [torch.full((2,), 0.3), torch.full((2,), 0.2)]
    scales = best_scales(slopes, [bound.double() for bound in bounds])
    moving = factors(scales)
    moved = [W * f for W, f in zip(layers, moving, strict=True)]
    torch.testing.assert_close(forward(moved, x)[-1], forward(layers, x)[-1])
    there = gradients(moved, x, y)
    for G, expected, f in zip(there, slopes, moving, strict=True):
        torch.testing.assert_close(G, expected / f)
    # Sweeps end where no unit alone can do better; the best of all corners is there as well.
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 9)).reshape(9, -1).T
    best = torch.zeros(2, dtype=torch.float64)
    for corner in torch.from_numpy(corners):
        signs = corner.expand(2, -1).split([5, 4], 1)
        parts = factors([b[:, None] * s for b, s in zip(bounds, signs, strict=True)])
        value = squared_norm([G / f for G, f in zip(slopes, parts, strict=True)])
        best = torch.maximum(best, value)
    torch.testing.assert_close(squared_norm(there), best)
    for kind in ("momentum", "AdaGrad", "Adam"):
        optimizer = OPTIMIZERS[kind](layers, torch.full((2,), 1e-3))
        optimizer.step([W.clone() for W in layers], [G.clone() for G in slopes])
        optimizer.transport(slice(0, 2), moving)
        begun = OPTIMIZERS[kind](moved, torch.full((2,), 1e-3))
        begun.step([W.clone() for W in moved], [G.clone() for G in there])
        for (_, one), (_, other) in zip(optimizer.moments, begun.moments, strict=True):
            for a, b in zip(one, other, strict=True):
                torch.testing.assert_close(a, b)


def test_scaling_goes_no_further_than_the_stop() -> None:
    layers = [W.float() for W in stack(3)]
    x, y = (images(3, 30)[0].float(), images(3, 30)[1])
    scales, reached = bounded_scales(layers, x, y, [torch.full((3,), 20.0)] * 2)
    moved = [W * f for W, f in zip(layers, factors(scales), strict=True)]
    torch.testing.assert_close(squared_norm(gradients(moved, x, y)), reached, rtol=1e-3, atol=0)
    assert bool((reached <= STOP).all() and (reached > 0.9 * STOP).all())


def test_variants_see_the_same_until_the_first_teleport() -> None:
    whole = data_sets(Path("nowhere"), smoke=True)[0]["digits"]
    run = Training(whole, (64, 5, 10), "AdaGrad", [NONE, RESET, RECIPE], [0.1] * 3, [0, 1])
    found = np.array(run.run(3, ["test"])["test"])
    assert found.shape == (4, 3, 2)
    np.testing.assert_array_equal(found[:3, 0], found[:3, 1])  # AdaGrad's teleports: epoch 2
    np.testing.assert_array_equal(found[:3, 0], found[:3, 2])
    assert (found[3, 0] != found[3, 1]).all()
    assert set(run.told) == {RECIPE.name}


def test_a_run_is_the_same_in_a_stack_of_any_size() -> None:
    whole = data_sets(Path("nowhere"), smoke=True)[0]["digits"]
    ends = []
    for seeds in ([0, 1], [1]):
        run = Training(whole, (64, 5, 10), "Adam", [NONE, RECIPE], [1e-2] * 2, seeds)
        run.run(1, [])
        ends.append(run.layers[0][run.rows(1)][-1])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-5)


def test_a_late_curve_is_read_at_the_plain_times() -> None:
    times = np.arange(5.0)
    curve = -np.arange(5.0)[:, None]
    shifted = by_second(curve, curve, times, np.where(times > 1, 1.0, 0.0))
    np.testing.assert_allclose(shifted[:, 0], [0, -1, -1.5, -2, -3])


def test_parts_sum_to_the_effect() -> None:
    draws = np.random.default_rng(0)
    names = ["none", "reset alone", "random element", "published recipe", "exact scaling"]
    run = {
        "variants": names,
        "rates": [1.0] * 5,
        "epoch": 0,
        "losses": {k: draws.uniform(0.1, 1, (4, 5, 6)).tolist() for k in ("train", "test")},
        "teleports": {},
    }
    found = effects(run, {"step": 1.0, "teleport": 0.5}, 10)
    for parts in found["parts"].values():
        total = sum(parts[name][0] for name in ("reset", "drift", "teleport"))
        assert total == pytest.approx(parts["whole"][0])
        if "shares" in parts:
            assert sum(of[0] for of in parts["shares"].values()) == pytest.approx(1)


def test_statistics() -> None:
    draws = np.random.default_rng(1)
    z = draws.standard_normal(4000)
    x, y = z + draws.standard_normal(4000), z + draws.standard_normal(4000)
    assert float(pearson(x, y)) == pytest.approx(0.5, abs=0.05)
    assert abs(float(partial(x, y, z))) < 0.05
    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 3.0, 7.0])), [1.5, 0, 1.5, 3])
    mean, low, high = mean_interval(x[:400])
    assert high - low == pytest.approx(2 * 1.96 * x[:400].std() / 20, rel=0.1)
    assert low < mean < high
    assert share_interval(2 * z + 10, z + 5) == pytest.approx((2, 2, 2))


def test_what_ctrl_c_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = replace(optimizers.SETTINGS[1], name="first", tuned=False)
    size = optimizers.Size(2, 1, (1.0,), 0, (first, replace(first, name="second")), 0)
    sets = data_sets(Path("nowhere"), smoke=True)[0]
    seen: list[str] = []

    def stopped(*of: Any) -> dict[str, Any]:
        seen.append(of[1].name)
        if len(seen) > at:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(optimizers, "reported", stopped)
    monkeypatch.setattr(optimizers, "seconds", lambda *_: {kind: {} for kind in OPTIMIZERS})
    monkeypatch.setattr(optimizers, "effects", lambda *_: {})
    at = 3
    with pytest.raises(KeyboardInterrupt):
        optimizers.study(sets, [], size, tmp_path)
    at = 8
    found = optimizers.study(sets, ["one"], size, tmp_path)
    assert list(found["settings"]) == ["first"]
    assert found["missing"] == ["one", "Stopped before its end; not run: second."]
    assert seen == ["first"] * 6 + ["second"] * 3


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "TELEPORTS", 2)
    monkeypatch.setattr(optimizers, "TELEPORTS", 2)
    size = optimizers.Size(2, 1, (1.0,), 3, (optimizers.SETTINGS[1],), 2)
    study = command.STUDIES["optimizers"]
    monkeypatch.setitem(command.STUDIES, "optimizers", replace(study, smoke=size))
    page, folder = tmp_path / "page.md", tmp_path / "out"
    arguments = [
        "teleport",
        "optimizers",
        "--smoke",
        "--out",
        str(folder),
        "--write-page",
        str(page),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    world = World()
    command.main(world)
    said = capsys.readouterr().out
    for kind in OPTIMIZERS:
        assert f"**{kind}**" in said
    assert "### digits" in page.read_text()
    assert page.with_name("teleport_optimizers.png").stat().st_size < 150_000
    found = json.loads(page.with_name("teleport_optimizers.json").read_text())
    assert found["seeds"] == 2
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    command.main(world)  # Nothing is run again.
    assert kept == {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    monkeypatch.setattr("sys.argv", [*arguments[:3], "--seeds", "1"])
    with pytest.raises(UserError, match="--seeds: found 1"):
        command.main(world)
