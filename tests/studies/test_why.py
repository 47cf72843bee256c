"""studies.why: what a teleport keeps, stops of the one unroll."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import TASK, learned_rule
from cases import tasks as sample
from support import regression, signed

from metaopt.base.errors import UserError
from metaopt.base.process import World
from metaopt.base.streams import Stream
from metaopt.landscape.curvature import CURVATURES, flat, jacobian
from metaopt.meta.unroll import rollout, start, unroll
from metaopt.symmetry.actions import Action, Orthogonal, ThroughData
from metaopt.symmetry.maps import Exponential
from metaopt.tasks.build import task_family
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.regression import TaskBatch
from studies import why
from studies.alignment import Measured, Stop, Teleported, acted, carried, condition, measure, stops
from studies.output import write_between

SIZES = (5, 4, 3)
SQUARE = regression((4, 4, 4), samples=4, seed=2)


def test_condition_number_of_given_activations() -> None:
    U, _, Vh = torch.linalg.svd(signed(2, 4, 4, seed=3))
    H = U * torch.tensor([8.0, 4.0, 2.0, 0.5]).double() @ Vh
    W1 = SQUARE.s.inverse(H) @ torch.linalg.inv(SQUARE.X)
    torch.testing.assert_close(
        condition(SQUARE, (W1, SQUARE.initial[1])), torch.full((2,), 16.0).double()
    )


def stop_after(tasks: TaskBatch, action: Action, norm: float) -> Stop:
    """Tasks teleported from their initial weights, about to make some update."""
    k = tasks.initial[0].shape[1]
    T = action.algebra(norm * signed(tasks.size, k, k, seed=7))
    element = Exponential(4.0)(T)
    update = tuple(0.1 * signed(*W.shape, seed=8) for W in tasks.initial)
    weights = acted(tasks, action, element, tasks.initial)
    return Stop(1, weights, update, Teleported(action, tasks.initial, element, element))


def test_orthogonal_teleports_keep_norms_and_angles() -> None:
    """In the orthogonal group gradient, Jacobian and Newton turn together."""
    linear = regression(SIZES, samples=6, seed=4, slope=1.0)
    found = measure(linear, stop_after(linear, Orthogonal(), 0.3))
    ones = torch.ones(2).double()
    torch.testing.assert_close(found.state["gradient norm ratio"], ones)
    torch.testing.assert_close(found.state["condition ratio"], ones)
    gains = {key: v for key, v in found.alignment.items() if "gain" in key[2]}
    assert len(gains) == 2 * 2 * 2 * len(CURVATURES)
    for key, gain in gains.items():
        # Beside a damping of 1e-6 the null space of W2 alone is exact, that of others rounds.
        assert float(gain.abs().max()) < 1e-6, key
    for name in ("Gauss-Newton", "absolute Hessian"):
        for there in ("update carried", "update undone"):
            turned = found.alignment[name, 1e-3, there]
            torch.testing.assert_close(turned, found.alignment[name, 1e-3, "update"])


def test_teleports_through_the_data_keep_the_loss_and_move_the_gradient() -> None:
    found = measure(SQUARE, stop_after(SQUARE, ThroughData(), 0.3))
    torch.testing.assert_close(found.state["loss before"], found.state["loss after"])
    assert bool(((found.state["gradient norm ratio"] - 1).abs() > 1e-3).all())
    # After a single teleport, all undone is the last one undone.
    for name in ("loss", "condition", "gradient norm"):
        torch.testing.assert_close(found.state[f"{name} undone"], found.state[f"{name} before"])
    for curvature in CURVATURES:
        for last, all_of_them in (("before", "undone"), ("gain", "total gain")):
            torch.testing.assert_close(
                found.alignment[curvature, 1e-3, f"gradient {last}"],
                found.alignment[curvature, 1e-3, f"gradient {all_of_them}"],
                rtol=1e-6,
                atol=1e-9,
            )


def test_a_carried_direction_does_to_the_outputs_what_it_did_before() -> None:
    stop = stop_after(SQUARE, ThroughData(), 0.2)
    assert stop.teleported is not None
    v = tuple(signed(*W.shape, seed=9 + i) for i, W in enumerate(SQUARE.initial))
    moved = carried(SQUARE, ThroughData(), stop.teleported.element, SQUARE.initial, v)
    before = jacobian(SQUARE, SQUARE.initial) @ flat(v)[..., None]
    after = jacobian(SQUARE, stop.weights) @ flat(moved)[..., None]
    torch.testing.assert_close(before, after, rtol=1e-8, atol=1e-8)


def test_weights_that_are_not_finite_are_left_out_and_harm_no_other() -> None:
    stop = stop_after(SQUARE, ThroughData(), 0.3)
    alone = measure(SQUARE, stop)
    broken = tuple(W.clone() for W in stop.weights)
    broken[0][1, 0, 0] = torch.inf
    found = measure(SQUARE, replace(stop, weights=broken))
    for values, wanted in ((found.state, alone.state), (found.alignment, alone.alignment)):
        assert list(values) == list(wanted)
        for value, other in zip(values.values(), wanted.values(), strict=True):
            assert torch.isnan(value[1])
            torch.testing.assert_close(value[0], other[0])
    nothing = measure(SQUARE, replace(stop, weights=tuple(W * torch.nan for W in stop.weights)))
    assert nothing == Measured({}, {})


@pytest.mark.parametrize("kind", ["coordinate_lstm", "lstm_step", "coordinate_lstm_update"])
def test_stops_lie_on_the_trajectories_of_the_one_unroll(kind: str) -> None:
    optimizer = learned_rule(kind).optimizer
    tasks = sample(TaskConfig.model_validate(TASK), count=3)
    state = start(tasks, optimizer)
    found = list(stops(tasks, optimizer, [0, 1, 2, 5]))
    for stop in found:
        if stop.step > state.step:
            state, _ = unroll(tasks, optimizer, state, stop.step - state.step)
        assert all(torch.equal(a, b) for a, b in zip(stop.weights, state.weights, strict=True))
    first, second = found[:2]
    stepped = tuple(W + f for W, f in zip(first.weights, first.update, strict=True))
    assert first.teleported is None
    if kind == "coordinate_lstm_update":
        assert second.teleported is None
    else:
        assert second.teleported is not None
        before = second.teleported.before
        assert all(torch.equal(a, b) for a, b in zip(before, stepped, strict=True))
        stepped = acted(tasks, ThroughData(), second.teleported.element, before)
        assert found[-1].teleported is not None
        # G, the product of all elements, comes with its inverse.
        total = found[-1].teleported.total
        identity = torch.eye(4).double().expand_as(total.g)
        torch.testing.assert_close(total.g @ total.g_inv, identity)
        assert float((total.g - identity).abs().max()) > 1e-3
    for W, wanted in zip(second.weights, stepped, strict=True):
        torch.testing.assert_close(W, wanted, rtol=1e-12, atol=1e-12)


def test_statistics_of_what_is_there() -> None:
    values = torch.tensor([1.0, 100.0, torch.nan, torch.inf]).numpy()
    assert why.positive(values) | {"q05": 0, "q95": 0, "median": 0} == {
        "geomean": pytest.approx(10),
        "tasks": 2,
        "q05": 0,
        "q95": 0,
        "median": 0,
    }
    cosines = why.signed(torch.tensor([0.5, -0.1, 0.2, torch.nan]).numpy())
    assert cosines["median"] == pytest.approx(0.2)
    assert cosines["tasks"] == 3
    assert cosines["share_above_0"] == pytest.approx(2 / 3)
    assert why.signed(torch.tensor([torch.nan]).numpy())["mean"] is None


def test_the_command_writes_figure_figures_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for kind in ("coordinate_lstm", "coordinate_lstm_update"):
        paths.append(tmp_path / f"{kind}.safetensors")
        learned_rule(kind).save(paths[-1])
    arguments = ["--tasks", "3", "--steps", "3", "--write-page", str(tmp_path / "why.md")]
    monkeypatch.setattr(sys, "argv", ["why", "--checkpoints", *map(str, paths), *arguments])
    why.main(World())
    found = json.loads((tmp_path / "why.json").read_text())
    json.dumps(found, allow_nan=False)
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
    pair, update = found["optimizers"].values()
    assert [stop["step"] for stop in pair["stops"]] == [0, 1, 2, 3]
    losses, trace = rollout(
        task_family(TaskConfig.model_validate(TASK)).sample(Stream.TEST, 0, 0, 3, torch.float64),
        learned_rule("coordinate_lstm").optimizer,
        3,
    )
    assert trace is not None
    wanted = losses.log().mean(1).exp().tolist()
    assert [row["geomean"] for row in pair["loss"]] == pytest.approx(wanted)
    norms = trace.norm.log().mean(1).exp().tolist()
    assert [row["geomean"] for row in pair["teleports"]["norm"]] == pytest.approx(norms)
    assert update["teleports"] is None
    compared = {line["of"] for line in pair["stops"][1]["alignment"]}
    assert set(why.COMPARED) <= compared
    assert (tmp_path / "why.md").read_text().count(pair["origin"]["checkpoint"]) == 0
    assert "coordinate_lstm" in (tmp_path / "why.md").read_text()


def test_only_two_layers() -> None:
    deep = regression((3, 3, 3, 3), samples=3, seed=1)
    with pytest.raises(UserError, match="two layers, found 3"):
        why.study([], deep, 1, 0)


def test_text_goes_between_the_markers_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n")
    write_between(page, "a", "new")
    assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- end of a -->\nafter\n"
    with pytest.raises(UserError, match=r"page\.md: expected one line '<!-- b -->'"):
        write_between(page, "b", "new")
    write_between(tmp_path / "fresh.md", "b", "text")
    assert (tmp_path / "fresh.md").read_text() == "<!-- b -->\ntext\n<!-- end of b -->\n"


def test_the_page_is_made_of_the_figures_beside_it() -> None:
    path = why.PAGE.path
    content = json.loads(path.with_name("why.json").read_text())
    assert f"<!-- why table -->\n{why.table(content)}\n<!-- end" in path.read_text()
