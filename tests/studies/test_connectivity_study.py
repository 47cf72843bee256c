"""studies/connectivity: training side by side, what is measured by other ways, all of it small."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import metaopt
from metaopt.base.process import World
from metaopt.base.streams import Stream, item_generator
from metaopt.tasks.datasets import Labelled
from studies.connectivity import __main__ as command
from studies.connectivity import networks
from studies.connectivity.barriers import (
    BEND,
    CHORD,
    CONTINUOUS,
    ORBIT,
    PATHS,
    WEIGHTS,
    Between,
    Measuring,
    barrier,
)
from studies.connectivity.networks import Network
from studies.connectivity.plan import Size, fitted
from studies.connectivity.result import PARTS, of_pairs, of_rivals
from studies.connectivity.rivals import (
    INDEPENDENT,
    METHODS,
    Chosen,
    Contest,
    copied,
    judged,
    probabilities,
)
from studies.connectivity.training import MOMENTUM, Recipe, Stack, Use, ends, initial
from studies.images import Images, data_sets

ALL = [
    Network("mlp", networks.mlp, 6),
    Network("vgg", networks.vgg, 4),
    Network("resnet, batch", networks.resnet_batch, 4),
    Network("resnet, layer", networks.resnet_layer, 4),
    Network("transformer", networks.transformer, 8),
]
named = pytest.mark.parametrize("network", ALL, ids=lambda one: one.name)


def images(count: int = 60) -> Images:
    return fitted(data_sets(Path("nowhere"), smoke=True)[0]["digits"], count)


def alone(network: Network, train: Labelled, recipe: Recipe, run: int) -> nn.Module:
    """Trained by a plain loop."""
    model = initial(network, train.X.shape[1], Use.ENDS, run)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.rate, MOMENTUM, weight_decay=recipe.decay
    )
    order = item_generator(Stream.MINIBATCH, Use.ENDS, run)
    steps = recipe.steps(train)
    step = 0
    for _ in range(recipe.epochs):
        rows = torch.from_numpy(order.permutation(len(train.y)))
        for part in rows.split(recipe.batch)[: len(train.y) // recipe.batch]:
            optimizer.param_groups[0]["lr"] = recipe.rate * recipe.factor(step / steps)
            optimizer.zero_grad()
            functional.cross_entropy(model(train.X[part]), train.y[part]).backward()
            optimizer.step()
            step += 1
    return model


@named
def test_runs_side_by_side_are_plain_runs(network: Network) -> None:
    train = images().train
    recipe = Recipe(2, 0.1, batch=25)
    found = Stack(network, train, Use.ENDS, [4, 1]).run(recipe, [recipe.steps(train)])[0]
    for run, one in zip([4, 1], found, strict=True):
        wanted = alone(network, train, recipe, run).state_dict()
        for path, value in one.state_dict().items():
            torch.testing.assert_close(value, wanted[path], rtol=1e-3, atol=1e-5)


def test_training_goes_on_where_it_stopped_and_hands_its_momentum_over() -> None:
    train, recipe, network = images().train, Recipe(3, 0.1, batch=20), ALL[0]
    steps = recipe.steps(train)
    whole = Stack(network, train, Use.ENDS, [0, 1]).run(recipe, [4, steps])
    stack = Stack(network, train, Use.ENDS, [0, 1])
    (early,) = stack.run(recipe, [4])
    optimizer = stack.optimizer_of(1, early[1])
    (late,) = stack.run(recipe, [steps])
    for one, other in zip([*early, *late], [*whole[0], *whole[1]], strict=True):
        wanted_weights = other.state_dict()
        assert all(torch.equal(w, wanted_weights[path]) for path, w in one.state_dict().items())
    # One more step by the optimizer is the stack's own next step.
    stack = Stack(network, train, Use.ENDS, [0, 1])
    stack.run(recipe, [4])
    model, own = copied(early[1], optimizer)
    own.param_groups[0]["lr"] = recipe.rate * recipe.factor(4 / steps)
    rows = stack._order[1, 20:40]
    (wanted,) = stack.run(recipe, [5])
    functional.cross_entropy(model(train.X[rows]), train.y[rows]).backward()
    own.step()
    for a, b in zip(model.parameters(), wanted[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert all(p.grad is None for p in early[1].parameters())


def test_the_schedules() -> None:
    flat = Recipe(10, 0.1)
    assert [flat.factor(t) for t in (0, 0.5, 0.9, 1)] == pytest.approx([1, 1, 0.01, 0.01])
    assert flat.factor(0.7) == pytest.approx(0.505)
    cosine = Recipe(10, 0.1, restarts=2)
    assert [cosine.factor(t) for t in (0, 0.25, 0.5, 0.75)] == pytest.approx([1, 0.5, 1, 0.5])


def test_uses_share_no_initial_weights_and_no_order() -> None:
    first = [next(initial(ALL[0], 4, use, 0).parameters()) for use in Use]
    assert all(not torch.equal(first[0], one) for one in first[1:])


@named
def test_the_symmetries_that_are_found_leave_the_outputs(network: Network) -> None:
    around = images()
    between = Between(network, around, Measuring())
    a, b = ends(network, around, Recipe(1, 0.05, batch=20), Use.ENDS, [0, 1])
    metaopt.refresh_batchnorm(b, (around.train.X, around.train.y))
    assert between.only(permutations=True)
    assert between.only(permutations=False)
    x = around.test.X
    for symmetries in (between.symmetries, between.only(permutations=True)):
        moved, report = metaopt.align(
            a.eval(), b.eval(), "orbit", data=between.around, symmetries=symmetries
        )
        torch.testing.assert_close(moved.eval()(x), b.eval()(x), rtol=1e-3, atol=1e-4)
        assert report.after <= report.before


def test_a_hidden_copy_is_found_and_the_chord_is_the_librarys() -> None:
    around, network = images(), ALL[0]
    between = Between(network, around, Measuring(points=5, shown=60, statistics=60))
    a, b = ends(network, around, Recipe(4, 0.1, batch=20), Use.ENDS, [0, 1])
    said = between.chord(a, b)
    wanted = metaopt.barrier(a, b, functional.cross_entropy, between.around, points=5)
    assert said["barrier"] == pytest.approx(wanted.value, rel=1e-4)
    copy_of_a = copy.deepcopy(a)
    order = torch.tensor([3, 1, 0, 2, 5, 4])
    for path, axis in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        parameter = copy_of_a.get_parameter(path)
        parameter.data = parameter.data.index_select(axis, order)
    found = between.pair(a, copy_of_a, Recipe(1, 0.1, batch=20), 0.1, 0)
    assert found[CHORD]["barrier"] > 0.01
    for name in (WEIGHTS, ORBIT):
        assert found[name]["barrier"] == pytest.approx(0, abs=1e-5)
        assert found[name]["length"] == pytest.approx(0, abs=1e-4)
    assert set(found) == set(PATHS)


@pytest.mark.parametrize("network", ALL[:4], ids=lambda one: one.name)
def test_the_curve_of_symmetry_ends_where_b_has_moved_and_keeps_its_loss(network: Network) -> None:
    around = images()
    between = Between(network, around, Measuring(shown=60, statistics=60))
    a, b = ends(network, around, Recipe(2, 0.1, batch=20), Use.ENDS, [0, 1])
    for one in (a, b):
        metaopt.refresh_batchnorm(one, between.around)
    moved, report = metaopt.align(
        a, b, "orbit", data=between.around, symmetries=between.only(permutations=False)
    )
    said = between.orbit(b, moved, report)["orbit"]
    assert said["rise"] < 1e-4
    assert said["off"] < 1e-4 * said["distance"]
    assert said["length"] >= 0.999 * said["distance"] > 0


def test_barriers_are_above_the_line_between_ends() -> None:
    assert barrier(torch.tensor([1.0, 4.0, 3.0])) == 2
    assert barrier(torch.tensor([1.0, 1.0, 3.0])) == 0


def test_shares_add_up() -> None:
    draws = np.random.default_rng(0)
    pairs = []
    for _ in range(4):
        values = np.sort(draws.random(len(PATHS)))[::-1]
        pairs.append(
            {
                path: {
                    "barrier": float(value),
                    "error barrier": 0.0,
                    "length": 1.0,
                    "loss": [0.1, 0.2, 0.3],
                    "error": [1.0, 2.0, 3.0],
                }
                for path, value in zip(PATHS, values, strict=True)
            }
        )
    found = of_pairs({"ends": {}, "bends": {}, "pairs": pairs})
    assert sum(found["shares"][part][0] for part in PARTS[:4]) == pytest.approx(1)
    assert found["ends"]["loss"] == pytest.approx((0.2, 0.2, 0.2))
    assert found["paths"][BEND]["barrier"][0] < found["paths"][CONTINUOUS]["barrier"][0]


def test_methods_at_equal_budgets() -> None:
    contest = Contest(replace(ALL[0], width=16), images(), 2, 2)
    contest.recipe = replace(contest.recipe, batch=10)
    contest.steps = contest.recipe.steps(contest.images.train)
    contest.middle = round(0.8 * contest.steps)
    assert contest.steps == 12
    chosen = Chosen(0.1, 0.1, 2, 0.05, 2, 0.5)
    found = contest.run(chosen)
    assert [found[name]["members"] for name in METHODS] == [1, 2, 1, 2, 2]
    runs = range(6)
    late, _ = contest.independent(Use.RIVALS, runs, 0.1)
    test = contest.images.test
    wanted = judged(probabilities(late[3:5], test.X), test.y)
    assert found[INDEPENDENT]["error"][1][1] == pytest.approx(wanted["error"])
    assert found[INDEPENDENT]["nll"][1][1] == pytest.approx(wanted["nll"], rel=1e-5)
    summary = of_rivals({"tuned": {}, "methods": found})["methods"]
    assert summary[INDEPENDENT]["error to independent"][2] == (0, 0, 0)
    mean = summary["FGE"]["nll"][0][0] - summary[INDEPENDENT]["nll"][0][0]
    assert summary["FGE"]["nll to independent"][0][0] == pytest.approx(mean)


def test_the_whole_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = Size(2, 50, 3, 3, (4, 6), 2, 2, 4, 4, 2, Measuring(3, 3, 30, 30))
    monkeypatch.setattr(command, "SMOKE", size)
    joined, averaged = size.joined("digits"), size.averaged("digits")
    # One of each kind: the whole list is run by --smoke.
    monkeypatch.setattr(Size, "joined", lambda self, name: [joined[0], joined[3]])
    monkeypatch.setattr(Size, "averaged", lambda self, name: averaged[:1])
    for name, one in (("RATES", (0.1,)), ("STEEPER", (1.0,)), ("HIGHS", (1.0,)), ("NORMS", (1.0,))):
        monkeypatch.setattr(f"studies.connectivity.rivals.{name}", one)
    page = tmp_path / "page.md"
    folder = str(tmp_path / "out")
    monkeypatch.setattr(
        "sys.argv",
        ["connectivity", "--smoke", "--out", folder, "--write-page", str(page)],
    )
    command.main(World())
    said = capsys.readouterr().out
    assert "ResNet, BatchNorm" in said
    assert "FGE, teleported" in said
    assert page.with_name("connectivity.png").stat().st_size < 150_000
    found = json.loads(page.with_name("connectivity.json").read_text())
    assert set(found["sets"]["digits"]["ensembles"]) == {"MLP 4"}
    assert set(found["sets"]["digits"]["pairs"]) == {"MLP 4", "ResNet, BatchNorm"}
