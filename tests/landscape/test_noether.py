"""Drifts of charges against all mini-batches of real SGD steps; where they end."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from separate_heads import Heads
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from metaopt import symmetries
from metaopt.landscape.noether import Flow, noether
from metaopt.symmetry.conserved import charges
from metaopt.symmetry.elements import Diagonal, Element, Matrix
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.modules import move, touches_of


def _deep() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.LeakyReLU(), nn.Linear(4, 6)
    )


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 6))


def _mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, 6))


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4, bias=False), nn.LayerNorm(4, eps=0), nn.Linear(4, 6))


def _convolution() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 6))


MODELS: dict[str, tuple[Callable[[], nn.Module], Sequence[int]]] = {
    "deep": (_deep, (6,)),
    "linear": (_linear, (6,)),
    "mixed": (_mixed, (6,)),
    "heads": (Heads, (3, 6)),
    "normed": (_normed, (6,)),
    "convolution": (_convolution, (2, 3)),
}


def _made(name: str, count: int = 40) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    x, y = torch.randn(count, *shape), torch.randn(count, 6)
    return make().double(), (x.double(), y.double())


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_mean_change_over_all_batches_is_the_sum_of_the_parts(
    name: str, replacement: bool
) -> None:
    model, (x, y) = _made(name, count=4)
    found = symmetries(model, x)
    lr, decay = 0.2, 0.3
    report = noether(model, mse_loss, (x, y), 2, lr, decay, found, replacement=replacement)
    assert report
    before = charges(model, found)
    every = (
        itertools.product(range(4), repeat=2)
        if replacement
        else itertools.combinations(range(4), 2)
    )
    changes: dict[str, list[Tensor]] = {key: [] for key in report}
    for batch in map(list, every):
        moved = copy.deepcopy(model)
        optimizer = torch.optim.SGD(moved.parameters(), lr=lr, weight_decay=decay)
        mse_loss(moved(x[batch]), y[batch]).backward()
        optimizer.step()
        after = charges(moved, found)
        for key, change in changes.items():
            change.append(after[key] - before[key])
    for key, flow in report.items():
        mean = torch.stack(changes[key]).mean(0)
        assert (mean - flow.drift).abs().max() < 1e-12 * before[key].abs().max()
        assert torch.equal(flow.charge, before[key])
        assert min(float(part.abs().max()) for part in (flow.gradient, flow.noise, flow.decay)) > 0


def test_the_whole_data_as_one_batch_have_no_noise() -> None:
    model, data = _made("deep")
    for flow in noether(model, mse_loss, data, 40, 0.1, replacement=False).values():
        assert not flow.noise.any()
        assert flow.gradient.abs().max() > 0


def _element(symmetry: Symmetry) -> Element:
    shape = (symmetry.blocks, symmetry.size)
    if symmetry.group is Group.SCALING:
        return Diagonal(torch.randn(shape, dtype=torch.float64))
    g = torch.linalg.matrix_exp(0.3 * torch.randn(*shape, symmetry.size, dtype=torch.float64))
    return Matrix(g, torch.linalg.inv(g))


def _exp(t: Tensor) -> Tensor:
    return torch.linalg.matrix_exp(2 * t)


@pytest.mark.parametrize("name", ["deep", "linear", "mixed", "heads", "convolution"])
def test_the_equilibrium_is_the_same_point_from_everywhere_on_the_orbit(name: str) -> None:
    model, data = _made(name)
    found = symmetries(model, data[0])
    before = noether(model, mse_loss, data, 2, 0.1, 0, found)
    elements = [(flow.symmetry, _element(flow.symmetry)) for flow in before.values()]
    move(model, touches_of(elements))
    after = noether(model, mse_loss, data, 2, 0.1, 0, found)
    for (key, flow), (symmetry, element) in zip(before.items(), elements, strict=True):
        assert flow.remark == ""
        if symmetry.group is Group.SCALING:
            t = element.act(torch.ones(symmetry.size, 1, dtype=torch.float64))[0, :, 0].log()
            torch.testing.assert_close(after[key].distance, flow.distance - t, rtol=0, atol=1e-9)
        else:
            # P = exp(2 t*), and h^T P' h = P: the same metric, seen from another point.
            h = element.act(torch.eye(symmetry.size, dtype=torch.float64))
            metric = h.mT @ _exp(after[key].distance).reshape(h.shape) @ h
            wanted = _exp(flow.distance).reshape(h.shape)
            torch.testing.assert_close(metric, wanted, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(flow.distance, flow.distance.mT)
        torch.testing.assert_close(
            after[key].rate.sort().values, flow.rate.sort().values, rtol=1e-7, atol=0
        )


def _go(model: nn.Module, flows: Sequence[Flow], share: float = 1.0) -> None:
    """Move a model by exp(share t*)."""
    elements: list[tuple[Symmetry, Element]] = []
    for flow in flows:
        symmetry, t = flow.symmetry, share * flow.distance
        if symmetry.group is Group.SCALING:
            elements.append((symmetry, Diagonal(t.reshape(symmetry.blocks, -1))))
        else:
            t = t.reshape(symmetry.blocks, symmetry.size, symmetry.size)
            elements.append(
                (symmetry, Matrix(torch.linalg.matrix_exp(t), torch.linalg.matrix_exp(-t)))
            )
    move(model, touches_of(elements))


@pytest.mark.parametrize("name", ["deep", "linear", "mixed", "heads", "convolution"])
def test_at_the_equilibrium_noise_drives_nothing_and_the_distance_is_zero(name: str) -> None:
    model, data = _made(name)
    found = symmetries(model, data[0])
    before = noether(model, mse_loss, data, 2, 0.1, 0, found)
    _go(model, list(before.values()))
    after = noether(model, mse_loss, data, 2, 0.1, 0, found)
    for key, flow in before.items():
        assert after[key].noise.norm() < 1e-9 * flow.noise.norm()
        assert after[key].distance.abs().max() < 1e-8


@pytest.mark.parametrize("name", ["deep", "linear", "heads"])
def test_the_rate_is_how_fast_the_noise_leads_back(name: str) -> None:
    """(noise at t* + e) - (noise at t* - e) over the difference of charges, by finite steps."""
    model, data = _made(name)
    found = symmetries(model, data[0])
    far = noether(model, mse_loss, data, 2, 0.1, 0, found)
    _go(model, list(far.values()))
    here = noether(model, mse_loss, data, 2, 0.1, 0, found)
    for key, flow in here.items():
        symmetry, step = flow.symmetry, 1e-4
        if symmetry.group is Group.SCALING:
            # One unit at a time: the others are held.
            for unit in range(symmetry.size):
                t = torch.zeros(1, symmetry.size, dtype=torch.float64)
                t[0, unit] = step
                noise, charge = _difference(model, data, key, symmetry, Diagonal(t), Diagonal(-t))
                rate = -noise[unit] / charge[unit]
                torch.testing.assert_close(rate, flow.rate[unit], rtol=1e-6, atol=0)
            continue
        rates = _all_rates(model, data, key, symmetry, step)
        shown = flow.rate.reshape(symmetry.blocks, -1)
        for block in range(symmetry.blocks):
            assert abs(rates[block].min() - shown[block].min()) < 1e-5 * shown[block].min()
            for rate in shown[block]:
                assert (rates[block] - rate).abs().min() < 1e-5 * rate


def _difference(
    model: nn.Module, data: Any, key: str, symmetry: Symmetry, there: Element, back: Element
) -> tuple[Tensor, Tensor]:
    """How noise and charge differ between two points of the orbit."""
    flows = []
    for element in (there, back):
        moved = copy.deepcopy(model)
        move(moved, touches_of([(symmetry, element)]))
        flows.append(noether(moved, mse_loss, data, 2, 0.1, 0, [symmetry])[key])
    return flows[0].noise - flows[1].noise, flows[0].charge - flows[1].charge


def _all_rates(
    model: nn.Module, data: Any, key: str, symmetry: Symmetry, step: float
) -> list[Tensor]:
    """All k (k + 1) / 2 rates of each block, from a basis of the symmetric matrices."""
    k = symmetry.size
    rows, columns = torch.triu_indices(k, k)
    changes = []
    for i, j in zip(rows, columns, strict=True):
        t = torch.zeros(symmetry.blocks, k, k, dtype=torch.float64)
        t[:, i, j] = t[:, j, i] = step
        there, back = torch.linalg.matrix_exp(t), torch.linalg.matrix_exp(-t)
        changes.append(
            _difference(model, data, key, symmetry, Matrix(there, back), Matrix(back, there))
        )
    noise, charge = (
        torch.stack([one.reshape(symmetry.blocks, k, k)[:, rows, columns] for one in part], 2)
        for part in zip(*changes, strict=True)
    )
    return [
        -torch.linalg.eigvals(torch.linalg.solve(c, n)).real
        for n, c in zip(noise, charge, strict=True)
    ]


def test_scalars_have_the_closed_form() -> None:
    """u w x ~ y: e^(4 t) = E over samples of Var g_w / Var g_u."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    x = torch.randn(50, 1, dtype=torch.float64)
    y = x + torch.randn_like(x)
    slots = Slot("0", "weight", 0), Slot("1", "weight", 1)
    scale = Symmetry("0 -> 1", Group.SCALING, 1, slots[:1], slots[1:])
    (flow,) = noether(model, mse_loss, (x, y), 1, 0.01, 0, [scale]).values()
    w, u = (parameter.detach()[0] for parameter in model.parameters())
    v = u * w
    of_v = 2 * (v * x - y) * x
    variance = of_v.var(correction=0)[None]
    s_in, s_out = u.square() * variance, w.square() * variance
    torch.testing.assert_close(flow.charge, w.square() - u.square())
    torch.testing.assert_close(flow.noise, 0.01**2 * (s_in - s_out))
    torch.testing.assert_close(flow.distance, (s_in / s_out).log() / 4)
    # At the equilibrium u^2 = w^2 = |v|: (s_in + s_out) / (a + b) = variance of g_v.
    torch.testing.assert_close(flow.rate, 0.01**2 * variance)


def test_weights_in_front_of_a_normalisation_have_the_law_of_the_fourth_power() -> None:
    model, data = _made("normed")
    flow = noether(model, mse_loss, data, 2, 0.1)["0"]
    weight = model.get_parameter("0.weight")
    squared = weight.detach().square().sum()
    torch.testing.assert_close(flow.charge, squared[None])
    assert flow.distance.tolist() == [math.inf]
    assert flow.steps.tolist() == [math.inf]
    assert "no equilibrium" in flow.remark
    assert flow.growth is not None
    torch.testing.assert_close(flow.growth, 2 * flow.charge * flow.drift)
    with torch.no_grad():
        weight.mul_(1.7)
    again = noether(model, mse_loss, data, 2, 0.1)["0"].growth
    assert again is not None
    torch.testing.assert_close(again, flow.growth)


def test_weight_decay_gives_such_weights_an_equilibrium() -> None:
    model, data = _made("normed")
    flow = noether(model, mse_loss, data, 2, 0.1, 0.01)["0"]
    assert "weight decay" in flow.remark
    # Without decay's second order: |w|^4 = lr E|g~|^2 / (2 wd), and growth is 2 lr^2 E|g~|^2.
    assert flow.growth is not None
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(flow.distance.exp())
    there = noether(model, mse_loss, data, 2, 0.1, 0.01)["0"]
    torch.testing.assert_close(
        there.charge.square(), flow.growth / 0.1 / 4 / 0.01, rtol=1e-3, atol=0
    )
    assert there.drift.abs() < 1e-12 * there.decay.abs()
    assert there.distance.abs() < 1e-12
    # Drift against charge, by finite steps: d C changes by -rate (C - C*).
    points = []
    for factor in (1 + 1e-5, 1 - 1e-5):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved.get_parameter("0.weight").mul_(factor)
        points.append(noether(moved, mse_loss, data, 2, 0.1, 0.01)["0"])
    slope = (points[0].drift - points[1].drift) / (points[0].charge - points[1].charge)
    torch.testing.assert_close(-slope, there.rate, rtol=1e-6, atol=0)


def test_symmetries_that_move_frozen_parameters_are_refused() -> None:
    model, data = _made("deep")
    found = symmetries(model)
    model.get_parameter("0.bias").requires_grad_(False)
    assert list(noether(model, mse_loss, data, 2, 0.1)) == ["2 -> 4"]
    with pytest.raises(ValueError, match=r"'0\.bias' is not trained"):
        noether(model, mse_loss, data, 2, 0.1, 0, found)


def test_what_is_printed() -> None:
    model, data = _made("normed")
    report = noether(model, mse_loss, data, 2, 0.1, 0.01)
    text = str(report)
    assert text.startswith("SGD on 40 samples, batches of 2, learning rate 0.1, weight decay 0.01")
    assert all(name in text for name in report)
    (row, *_) = report.rows()
    assert row["drift"] == float(report[row["symmetry"]].drift.norm())
    assert str(noether(nn.Sequential(nn.Linear(6, 6)).double(), mse_loss, data, 2, 0.1))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
        ({"batch_size": 41, "replacement": False}, "at least 1 and at most 40, .*found 41"),
        ({"lr": 0.0}, "lr must be finite and above 0, found 0"),
        ({"lr": math.inf}, "lr must be finite and above 0, found inf"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and at least 0, found -1"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    model, data = _made("deep")
    with pytest.raises(ValueError, match=message):
        noether(model, mse_loss, data, **{"batch_size": 2, "lr": 0.1, **setting})


def test_batch_normalisation_in_training_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 6)).double()
    _, data = _made("deep")
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        noether(model, mse_loss, data, 2, 0.1)
