"""Curves along symmetries: the loss stays, and what has no path is refused with the reason."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support import signed
from torch import Tensor, nn

from metaopt import connect, symmetries, symmetry_curve
from metaopt.symmetry.elements import Diagonal, Relabelling, ScaledRotation
from metaopt.symmetry.groups import Group, Symmetry

MSE = nn.functional.mse_loss
X, Y = signed(16, 4, seed=1), signed(16, 4, seed=2)


def linear(*sizes: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes))).double()


def element(size: int, seed: int, sign: int = 1) -> Tensor:
    """A well-conditioned matrix whose determinant has this sign."""
    g = torch.eye(size, dtype=torch.float64) + 0.8 * signed(size, size, seed=seed)
    if torch.linalg.det(g) * sign < 0:
        g[0] *= -1
    return g


def only(model: nn.Module) -> Symmetry:
    (found,) = symmetries(model)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_of_linear_networks_is_constant(seed: int) -> None:
    model = linear(4, 5, 4)
    g = element(5, seed)
    curve = symmetry_curve(model, only(model), g, loss=MSE)
    report = curve.evaluate((X, Y))
    assert (report.loss - report.loss[0]).abs().max() < 1e-12
    assert report.barrier < 1e-12
    assert report.length > 0
    for path, value in model.named_parameters():
        assert torch.equal(curve.weights(0.0)[path], value)
    torch.testing.assert_close(curve.weights(1.0)["0.weight"], g @ model.get_parameter("0.weight"))
    torch.testing.assert_close(
        curve.weights(1.0)["1.weight"], model.get_parameter("1.weight") @ g.inverse()
    )


def test_paths_are_continuous_also_where_g_has_no_real_logarithm() -> None:
    # A half turn in one plane times unequal scales: eigenvalues -1 and -2, each alone.
    model, g = linear(4, 2, 4), torch.tensor([[-1.0, 0], [0, -2]])
    curve = symmetry_curve(model, only(model), g, loss=MSE)
    t = torch.linspace(0, 1, 201).tolist()
    points = torch.stack([curve.weights(one)["0.weight"] for one in t])
    steps = (points[1:] - points[:-1]).flatten(1).norm(dim=1)
    assert steps.max() < 2 * steps.mean()
    assert (curve.evaluate((X, Y)).loss.std()) < 1e-12


@pytest.mark.parametrize("kind", ["identity", "half turns", "near half turns", "rotation"])
def test_rotations_of_all_kinds(kind: str) -> None:
    frame = torch.linalg.qr(signed(6, 6, seed=3))[0]
    turn = torch.eye(6, dtype=torch.float64)
    if kind == "half turns":
        turn[range(4), range(4)] = -1.0
    if kind == "near half turns":
        angle = torch.tensor(torch.pi - 1e-9, dtype=torch.float64)
        turn[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    g = frame @ turn @ frame.T
    if kind == "rotation":
        g = frame if torch.linalg.det(frame) > 0 else frame[[1, 0, 2, 3, 4, 5]]
    model = linear(4, 6, 4)
    orthogonal = replace(only(model), group=Group.ORTHOGONAL)
    curve = symmetry_curve(model, orthogonal, g)
    norm = model.get_parameter("0.weight").detach().norm()
    for t in (0.0, 0.25, 0.5, 1 - 1e-9, 1.0):
        torch.testing.assert_close(curve.weights(t)["0.weight"].norm(), norm)
    last, before = curve.weights(1.0)["0.weight"], curve.weights(1 - 1e-12)["0.weight"]
    torch.testing.assert_close(last, before, rtol=1e-8, atol=1e-8)


def test_scaling_of_relu_networks() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4)).double()
    factors = torch.tensor([0.5, 2.0, 3.0])
    curve = symmetry_curve(model, "0 -> 2", factors, loss=MSE, weight_decay=1.0)
    report = curve.evaluate((X, Y))
    assert (report.loss - report.loss[0]).abs().max() < 1e-12
    assert report.penalty.std() > 0
    torch.testing.assert_close(
        curve.weights(0.5)["0.bias"], factors.double().sqrt() * model.get_parameter("0.bias")
    )
    element = symmetry_curve(model, only(model), Diagonal(factors.double().log()[None]))
    torch.testing.assert_close(element.weights(0.3), curve.weights(0.3))


def test_blocks_have_paths_of_their_own() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    model = Attention().double()
    found = [one for one in symmetries(model) if one.group is Group.LINEAR]
    assert [one.blocks for one in found] == [2, 2]
    gs = [torch.stack([element(3, seed), element(3, seed + 9)]) for seed in (0, 1)]
    curve = symmetry_curve(model, found, gs, loss=MSE)
    x = signed(5, 3, 6, seed=4)
    report = curve.evaluate((x, x), points=5)
    assert (report.loss - report.loss[0]).abs().max() < 1e-12
    bad = torch.stack([element(3, 0), element(3, 1, sign=-1)])
    with pytest.raises(ValueError, match="det g < 0 in block 1"):
        symmetry_curve(model, found[0], bad)


def test_a_scale_and_rotation() -> None:
    rotary = replace(only(linear(4, 2, 4)), group=Group.ROTARY, allows=frozenset({Group.ROTARY}))
    model = linear(4, 2, 4)
    t, u = torch.tensor([0.7]).double(), torch.tensor([2.5]).double()
    g = ScaledRotation(t, u)
    curve = symmetry_curve(model, rotary, g, loss=MSE)
    half = ScaledRotation(t / 2, u / 2).act(model.get_parameter("0.weight").detach()[None, None])[
        0, 0
    ]
    torch.testing.assert_close(curve.weights(0.5)["0.weight"], half)
    assert curve.evaluate((X, Y)).loss.std() < 1e-12
    with pytest.raises(ValueError, match="g is no rotation times a factor"):
        symmetry_curve(model, rotary, element(2, 0))


def test_what_has_no_path_is_refused_with_the_reason() -> None:
    model = linear(4, 3, 4)
    symmetry = only(model)

    def refused(group: Group, g: object, message: str) -> None:
        with pytest.raises(ValueError, match=message) as found:
            symmetry_curve(model, replace(symmetry, group=group), g)  # type: ignore[arg-type]
        assert "\n" not in str(found.value)

    refused(Group.LINEAR, element(3, 0, sign=-1), "det g < 0 in block 0, and every path")
    refused(Group.LINEAR, torch.zeros(3, 3), "g is singular in block 0")
    refused(Group.LINEAR, torch.eye(2), r"needs g of shape \[1, 3, 3\], found \[2, 2\]")
    refused(Group.LINEAR, torch.full((3, 3), torch.nan), "g must be finite")
    refused(Group.LINEAR, Relabelling(torch.tensor([[1, 0, 2]])), "det g < 0")
    refused(Group.ORTHOGONAL, element(3, 0), "g is not orthogonal")
    refused(Group.SCALING, torch.tensor([1.0, -2, 1]), "unit 1 of block 0 is scaled by -2")
    refused(Group.SCALING, Relabelling(torch.tensor([[1, 0, 2]])), "g is not a scaling")
    refused(Group.PERMUTATION, torch.eye(3), "no path joins an element of a discrete group")
    refused(Group.SIGNS, torch.ones(3), "no path joins an element of a discrete group")
    with pytest.raises(ValueError, match="found 1 symmetries and 2 elements"):
        symmetry_curve(model, symmetry, [torch.eye(3), torch.eye(3)])
    with pytest.raises(ValueError, match="t must be from 0 to 1, found 2"):
        symmetry_curve(model, symmetry, torch.eye(3)).weights(2)


def test_the_curve_beside_the_chord_and_the_trained_curve(tmp_path: Path) -> None:
    model = linear(4, 3, 4)
    curve = symmetry_curve(model, only(model), element(3, 1), loss=MSE)
    other = curve.model(1.0)
    chord = connect([model, other], bends=0, loss=MSE, data=(X, Y))
    trained = connect([model, other], loss=MSE, data=(X, Y), steps=60, lr=0.05)
    plane = trained.plane((X, Y), size=5, beside={"symmetry": curve})
    assert plane.curves["symmetry"].shape == (61, 2)
    torch.testing.assert_close(plane.curves["symmetry"][[0, -1]], plane.ends)
    plane.plot(tmp_path / "plane.png")
    reports = {"symmetry": curve.evaluate((X, Y)), "chord": chord.evaluate((X, Y))}
    trained.evaluate((X, Y)).plot(tmp_path / "losses.png", beside=reports)
    assert reports["symmetry"].barrier < 1e-12 < reports["chord"].barrier


@pytest.mark.parametrize(("k", "m"), [(1, 3.0), (2, 2.0)])
def test_the_middle_between_rescaled_minima(k: int, m: float) -> None:
    """(1 - 2^-(k+1) (1 + m^-k) (1 + m)^k)^2 |Y|^2 (arXiv 2505.23681)."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 3, bias=False) for _ in range(k + 1)]
    model = nn.Sequential(*layers).double()
    x = signed(7, 3, seed=5)
    y = model(x).detach()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for path, weight in other.named_parameters():
            weight.mul_(m**-k if path == f"{k}.weight" else m)

    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1).mean()

    chord = connect([model, other], bends=0, loss=squares, data=(x, y))
    report = chord.evaluate((x, y), points=3)
    factor = (1 - 2.0 ** -(k + 1) * (1 + m**-k) * (1 + m) ** k) ** 2
    expected = factor * float(y.square().sum(1).mean())
    assert report.loss.tolist() == pytest.approx([0, expected, 0], rel=1e-10, abs=1e-20)
