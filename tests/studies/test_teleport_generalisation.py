"""studies/teleport, generalisation: measures by other ways of computing, the whole in small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian

import metaopt
from metaopt.base.process import World
from metaopt.base.streams import Stream, item_generator
from metaopt.landscape.through_data import kappa_through_data, layers_of, seen_by
from studies.images import data_sets
from studies.teleport import __main__ as command
from studies.teleport import branches
from studies.teleport.action import drift
from studies.teleport.generalisation import MEASURES, Size, correlations
from studies.teleport.measures import (
    along,
    curve,
    directions,
    exponential,
    increase,
    phi_of,
    psi,
    trace,
    unit_generators,
)
from studies.teleport.stack import SLOPE, Layers, forward, initial, losses

SIZES = (7, 5, 4, 3)


def stack(runs: int = 2) -> Layers:
    return [W.double() for W in initial(SIZES, range(runs))]


def images(samples: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(groups, SIZES[0], samples, dtype=torch.float64, generator=draws)
    return x, torch.randint(SIZES[-1], (groups, samples), generator=draws)


def flat(layers: Layers) -> Tensor:
    return torch.cat([W.flatten(1) for W in layers], 1)


def unflat(w: Tensor) -> Layers:
    shapes = list(zip(SIZES[1:], SIZES[:-1], strict=True))
    parts = w.split([m * n for m, n in shapes])
    return [part.view(1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def test_the_trace_is_that_of_the_hessian() -> None:
    layers = stack()
    x, y = images(9)
    found = trace(layers, x, y)
    for run, w in enumerate(flat(layers)):
        H = hessian(lambda v: losses(forward(unflat(v), x)[-1], y)[0])(w)
        assert float(found[run]) == pytest.approx(float(H.trace()), rel=1e-10)


def test_directions_have_norm_one_and_lie_where_they_should() -> None:
    draws = item_generator(Stream.SHARPNESS, 0, 0)
    wide = initial((90, 80, 10), [0, 1])
    for uniform in (True, False):
        d = flat(directions(wide, draws, uniform))
        torch.testing.assert_close(d.norm(dim=1), torch.ones(2))
        cosine = d.sum(1) / d.shape[1] ** 0.5
        # All in one orthant: 0.87 = sqrt(3) / 2 with the vector of ones.
        assert float((cosine - (0.866 if uniform else 0)).abs().max()) < 0.05


def test_losses_along_a_line() -> None:
    layers = stack()
    x, y = images(9)
    moves = directions(layers, item_generator(Stream.SHARPNESS, 0, 1), uniform=False)
    found = along(layers, moves, x, y, (0.0, 0.3))
    moved = [W + 0.3 * D for W, D in zip(layers, moves, strict=True)]
    torch.testing.assert_close(found[0], losses(forward(layers, x)[-1], y))
    torch.testing.assert_close(found[1], losses(forward(moved, x)[-1], y))


def test_the_increase_is_the_trace_where_the_radius_is_small() -> None:
    layers, radius = stack(), 1e-3  # So that no unit's sign changes
    x, y = images(9)
    draws = item_generator(Stream.SHARPNESS, 0, 2)
    found = torch.stack([increase(layers, x, y, draws, radius) for _ in range(400)])
    count = flat(layers).shape[1]
    expected = radius**2 / 2 * trace(layers, x, y) / count
    error = found.std(0) / 20
    assert bool(((found.mean(0) - expected).abs() < 4 * error).all())


def test_the_gradient_of_phi() -> None:
    layers = stack()
    x, y = images(9, groups=2)

    def fresh(these: Layers) -> tuple[Tensor, Layers]:
        draws = item_generator(Stream.SHARPNESS, 0, 3)
        return phi_of(x, y, (0.1, 0.5), 3, draws)(these)

    _, slopes = fresh(layers)
    draws = torch.Generator().manual_seed(2)
    moves = [torch.randn(W.shape, dtype=torch.float64, generator=draws) for W in layers]
    h = 1e-6
    ends = [fresh([W + s * h * D for W, D in zip(layers, moves, strict=True)])[0] for s in (1, -1)]
    found = (flat(slopes) * flat(moves)).sum(1)
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("samples", [4, 30])
def test_derivatives_of_the_curve(samples: int) -> None:
    """Of what ``exponential`` does, by differences of the fourth order."""
    layers = stack()
    x, _ = images(samples)
    M = unit_generators(layers, item_generator(Stream.SHARPNESS, 0, 4))[-1]
    found = curve(layers, x, [None, M])
    h = 3e-4
    at = {i: flat(exponential(layers, x, i * h * M)) for i in range(-3, 4)}
    one = (at[-2] - 8 * at[-1] + 8 * at[1] - at[2]) / (12 * h)
    two = (-at[-2] + 16 * at[-1] - 30 * at[0] + 16 * at[1] - at[2]) / (12 * h**2)
    three = (at[-3] - 8 * at[-2] + 13 * at[-1] - 13 * at[1] + 8 * at[2] - at[3]) / (8 * h**3)
    torch.testing.assert_close(flat(found.first), one, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(flat(found.second), two, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flat(found.third), three, rtol=1e-2, atol=1e-3)


def test_the_slope_of_the_curvature() -> None:
    layers = stack()
    x, _ = images(4)  # No more than inputs of the layer: the action is exact, and a group's.
    M = unit_generators(layers, item_generator(Stream.SHARPNESS, 0, 5))[-1]
    h = 1e-4
    ends = [curve(exponential(layers, x, s * h * M), x, [None, M]).curvature() for s in (1, -1)]
    found = curve(layers, x, [None, M]).slope()
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-8)


def test_the_hyperbola() -> None:
    layers = [torch.tensor([[[1.5]], [[1.0]]]).double(), torch.tensor([[[0.5]], [[1.0]]]).double()]
    x = torch.ones(1, 1, 3, dtype=torch.float64)
    M = [torch.ones(2, 1, 1, dtype=torch.float64)]
    u, v = (W.flatten() for W in layers)
    expected = 2 * (u * v).abs() / (u * u + v * v) ** 1.5
    torch.testing.assert_close(curve(layers, x, M).curvature(), expected)
    assert float(expected[1]) == pytest.approx(0.70711, abs=1e-5)
    draws = item_generator(Stream.SHARPNESS, 0, 6)
    torch.testing.assert_close(psi(layers, x, draws), expected)  # M = 1 is the only one here.


def alone(layers: Layers, run: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for W in layers:
        layer = nn.Linear(W.shape[2], W.shape[1], bias=False, dtype=torch.float64)
        layer.weight.data = W[run].clone()
        modules += [layer, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("place", [0, 1])
def test_the_curvature_of_one_group_is_that_of_the_package(place: int) -> None:
    """Of two groups at once the published form leaves out a term."""
    layers = stack()
    x, _ = images(30)
    M = unit_generators(layers, item_generator(Stream.SHARPNESS, 0, 8))[place]
    moved = [M if i == place else None for i in range(2)]
    found = curve(layers, x, moved).curvature()
    for run in range(2):
        model = alone(layers, run)
        weights = {path: value.detach() for path, value in model.named_parameters()}
        chain = layers_of(model)
        seen = seen_by(weights, chain, x[0].mT)
        still = [torch.zeros(len(one.H), len(one.H), dtype=torch.float64) for one in seen]
        still[place] = M[run]
        expected = kappa_through_data(weights, chain, seen, still)
        torch.testing.assert_close(found[run], expected)


def test_the_trace_is_that_of_the_package() -> None:
    layers = stack()
    x, y = images(9)
    found = trace(layers, x, y)
    for run in range(2):
        measured = metaopt.sharpness(
            alone(layers, run), nn.CrossEntropyLoss(), (x[0].mT, y[0]), measures=("trace",)
        )
        assert measured.trace is not None
        assert float(found[run]) == pytest.approx(measured.trace.mean, rel=1e-9)


def test_a_control_moves_outputs_as_far() -> None:
    layers = stack(3)
    x, y = images(30)
    far = torch.tensor([0.003, 0.005, 0.01], dtype=torch.float64)
    M = unit_generators(layers, item_generator(Stream.SHARPNESS, 0, 7))[-1]
    moved = branches.as_far(
        lambda size: exponential(layers, x, size[:, None, None] * M),
        lambda to: drift(layers, to, x, y)[0],
        far,
    )
    torch.testing.assert_close(drift(layers, moved, x, y)[0], far, rtol=1e-4, atol=0)


def test_branches_differ_from_the_teleports_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "DRAWS", 4)
    # So small a network is above the published one after 20 epochs still.
    monkeypatch.setattr(branches, "PHI_STOP", 10.0)
    whole = data_sets(Path("nowhere"), smoke=True)[0]["digits"]
    plan = branches.Branching(seeds=2, epochs=22, rate=0.05, directions=1, samples=60)
    found = branches.Branches(whole, (6, 5), plan).run()
    losses = np.array(found["losses"]["train"])
    assert losses.shape == (8, 2, 9)
    before = losses[: branches.MOVED - branches.BRANCHED + 1]
    np.testing.assert_allclose(before, before[..., :1].repeat(9, -1), rtol=1e-4)
    assert (losses[-1, 0] != losses[-1, 1]).all()  # Orders of their own.
    for move in branches.MOVES:
        searched, random = (found["told"][name] for name in (move.name, f"{move.name}, random"))
        assert len(searched) == move.teleports
        far, reached = (np.array([one["drift"] for one in of]) for of in (searched, random))
        assert (far > 0).all()
        # Or less far, where the greatest random element that is allowed moves outputs no more.
        assert (reached <= 1.01 * far).all()
        if not move.up:
            np.testing.assert_allclose(reached, far, rtol=1e-2)
    for name, sign in (("phi down", -1), ("phi up", 1)):
        key = name.split()[0]
        before, after = (
            np.array([one[f"{key} {when}"] for one in found["told"][name]])
            for when in ("before", "after")
        )
        assert sign * float(np.median(after - before)) > 0, name


def test_correlations_of_planted_runs() -> None:
    draws = np.random.default_rng(0)
    train = draws.standard_normal(100)
    test = train + 0.5 * draws.standard_normal(100)
    runs = {key: (train + draws.standard_normal(100)).tolist() for key in MEASURES}
    runs |= {"train": train.tolist(), "test": test.tolist(), "psi": (-test).tolist()}
    found = correlations(runs)
    assert found["psi"]["pearson"] == pytest.approx((-1, -1, -1))
    assert found["psi"]["spearman"] == pytest.approx((-1, -1, -1))
    mean, low, high = found["phi"]["pearson"]
    assert 0 < low < mean < high < 1
    assert abs(found["phi"]["partial"][0]) < 0.2  # All of it went through the training loss.


def test_the_whole_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(branches, "DRAWS", 2)
    size = Size(5, 2, 0.05, (6, 5), 2, 2, (6, 5), 1, 60)
    study = command.STUDIES["generalisation"]
    monkeypatch.setitem(command.STUDIES, "generalisation", replace(study, smoke=size))
    page = tmp_path / "page.md"
    folder = str(tmp_path / "out")
    arguments = ["teleport", "generalisation", "--smoke", "--out", folder]
    monkeypatch.setattr("sys.argv", [*arguments, "--write-page", str(page)])
    command.main(World())
    said = capsys.readouterr().out
    for name in ("phi, as published", "honest sharpness", "psi up"):
        assert f"**{name}**" in said
    assert page.with_name("teleport_general.png").stat().st_size < 150_000
    found = json.loads(page.with_name("teleport_general.json").read_text())
    assert len(found["sets"]["digits"]["runs"]["psi"]) == 5
