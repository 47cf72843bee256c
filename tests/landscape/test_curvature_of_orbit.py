"""Curvature of curves on orbits: exact values, the true exponential, finite differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.linalg import matrix_exp

import metaopt
from metaopt import curvature
from metaopt.landscape.curvature_of_orbit import curvature_of, kappa
from metaopt.landscape.subgroup import Subgroup, random_generator
from metaopt.landscape.through_data import kappa_through_data, layers_of, seen_by
from metaopt.landscape.velocities import Direction, bend
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.modules import touches_of
from metaopt.symmetry.touch import weights as moved_weights

Named = dict[str, Tensor]


def _weights(model: nn.Module) -> Named:
    return {path: value.detach().clone() for path, value in model.double().named_parameters()}


def _differences(points: Sequence[Named], h: float) -> tuple[Named, Named]:
    """First and second derivatives in the middle of five points, to fourth order in h."""
    a, b, c, d, e = points
    first = {p: (a[p] - 8 * b[p] + 8 * d[p] - e[p]) / (12 * h) for p in c}
    second = {p: (16 * (b[p] + d[p]) - a[p] - e[p] - 30 * c[p]) / (12 * h**2) for p in c}
    return first, second


def _moved(weights: Named, directions: Sequence[Direction], t: float) -> Named:
    """exp(t T_m) .. exp(t T_1) w as teleports take it."""
    elements = [(s, Subgroup.of(s, T, 0).at(t)) for s, T in directions]
    touched = touches_of(elements)
    return {p: moved_weights(w, touched.get(p, [])) for p, w in weights.items()}


def _directions(model: nn.Module) -> list[Direction]:
    numbers = np.random.default_rng(0)
    return [
        (s, random_generator(s, numbers))
        for s in metaopt.symmetries(model)
        if s.group in (Group.LINEAR, Group.SCALING, Group.ROTARY, Group.ORTHOGONAL)
    ]


def test_a_hyperbola() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    (symmetry,) = metaopt.symmetries(model)
    for w1, w2 in ((1.0, 1.0), (1.5, 0.7), (-0.2, 3.0)):
        weights = {
            f"{i}.weight": torch.tensor([[w]], dtype=torch.float64) for i, w in enumerate((w1, w2))
        }
        T = torch.ones(symmetry.blocks, symmetry.size).double()
        expected = 2 * abs(w1 * w2) / (w1**2 + w2**2) ** 1.5
        assert float(kappa(weights, [(symmetry, T)])) == pytest.approx(expected, rel=1e-12)


def test_a_rotation_of_a_pair_is_a_circle() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 4, bias=False))
    weights = _weights(model)
    slots = (Slot("0", "weight", 0),), (Slot("1", "weight", 1),)
    symmetry = Symmetry("0 -> 1", Group.ORTHOGONAL, 2, *slots)
    T = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]).double()
    radius = math.sqrt(sum(float(w.square().sum()) for w in weights.values()))
    assert float(kappa(weights, [(symmetry, T)])) == pytest.approx(1 / radius, rel=1e-12)


def test_speed_does_not_count() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 2))
    weights, directions = _weights(model), _directions(model)
    faster = [(s, 7 * T) for s, T in directions]
    assert float(kappa(weights, faster)) == pytest.approx(float(kappa(weights, directions)))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y + self.down(self.up(y).relu())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 2)),
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)),
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)),
        _Attention(),
    ],
    ids=["linear", "relu", "convolutions", "attention"],
)
def test_against_a_fourth_order_difference_of_teleports(model: nn.Module) -> None:
    weights, directions = _weights(model), _directions(model)
    assert len(directions) >= 1
    h = 1e-2
    points = [_moved(weights, directions, i * h) for i in (-2, -1, 0, 1, 2)]
    expected = float(bend(*_differences(points, h)))
    assert float(kappa(weights, directions)) == pytest.approx(expected, rel=1e-6)


def test_the_cross_term_of_adjacent_groups_counts() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 5, bias=False), nn.Linear(5, 2))
    weights, directions = _weights(model), _directions(model)
    (_, T1), (_, T2) = directions
    V, W, U = (weights[f"{i}.weight"] for i in range(3))
    A, B = T1[0], T2[0]
    first = {"V": A @ V, "W": B @ W - W @ A, "U": -U @ B}
    second = {"V": A @ A @ V, "W": B @ B @ W + W @ A @ A, "U": U @ B @ B}
    without = float(bend(first, second))
    second["W"] = second["W"] - 2 * B @ W @ A
    found = float(kappa(weights, directions))
    assert found == pytest.approx(float(bend(first, second)), rel=1e-12)
    assert abs(found - without) > 0.01 * found


def test_two_forward_derivatives_of_the_true_curve_agree() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 5, bias=False))
    weights, directions = _weights(model), _directions(model)
    T = directions[0][1][0]

    def curve(t: Tensor) -> Named:
        return {
            "0.weight": matrix_exp(t * T) @ weights["0.weight"],
            "1.weight": weights["1.weight"] @ matrix_exp(-t * T),
        }

    found = float(curvature_of(curve, torch.zeros(()).double()))
    assert found == pytest.approx(float(kappa(weights, directions)), rel=1e-12)


def test_its_slope_in_weights_and_generators() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(3, 2))
    weights, directions = _weights(model), _directions(model)
    symmetries = [s for s, _ in directions]

    def of(*tensors: Tensor) -> Tensor:
        named = dict(zip(weights, tensors, strict=False))
        generators = tensors[len(weights) :]
        return kappa(named, list(zip(symmetries, generators, strict=True)))

    given = [x.requires_grad_() for x in (*weights.values(), *(T for _, T in directions))]
    assert torch.autograd.gradcheck(of, given)


def _through_data_exactly(
    model: nn.Sequential, X: Tensor, generators: Sequence[Tensor], t: float, inverse: float
) -> Named:
    """The groups act in turn, that of the last layers first."""
    weights = _weights(model)
    layers = layers_of(model)
    s = nn.LeakyReLU(inverse)
    for i, M in reversed(list(enumerate(generators))):
        seen = seen_by(weights, layers, X)[i]
        g = matrix_exp(t * M)
        here, after = layers[i].weight, layers[i + 1].weight
        change = s(g @ seen.H) - seen.Z
        weights[here] = weights[here] + change @ seen.inverse
        weights[after] = weights[after] @ torch.linalg.inv(g)
    return weights


def test_through_data_against_a_fourth_order_difference() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.LeakyReLU(0.1),
        nn.Linear(5, 4),
        nn.LeakyReLU(0.1),
        nn.Linear(4, 2),
    ).double()
    X = torch.randn(4, 2, 3).double()
    generators = [torch.randn(5, 5).double(), torch.randn(4, 4).double()]
    h = 1e-3
    points = [_through_data_exactly(model, X, generators, i * h, 10.0) for i in (-2, -1, 0, 1, 2)]
    f = functional_call(model, points[0], (X,))
    torch.testing.assert_close(f, model(X), rtol=1e-9, atol=1e-9)
    weights, layers = _weights(model), layers_of(model)
    found = kappa_through_data(weights, layers, seen_by(weights, layers, X), generators)
    assert float(found) == pytest.approx(float(bend(*_differences(points, h))), rel=1e-5)


def test_through_data_with_a_smooth_activation() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    X = torch.randn(9, 5).double()
    M = 0.3 * torch.randn(3, 3).double()
    weights, layers = _weights(model), layers_of(model)
    (seen,) = seen_by(weights, layers, X)

    def at(t: float) -> Named:
        g = matrix_exp(t * M)
        change = torch.atanh(g @ seen.H) - seen.Z
        return {
            "0.weight": weights["0.weight"] + change @ seen.inverse,
            "2.weight": weights["2.weight"] @ torch.linalg.inv(g),
        }

    h = 1e-3
    expected = bend(*_differences([at(i * h) for i in (-2, -1, 0, 1, 2)], h))
    found = kappa_through_data(weights, layers, [seen], [M])
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_with_linear_layers_both_actions_are_one() -> None:
    model = nn.Sequential(
        nn.Linear(4, 3, bias=False), nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False)
    )
    weights, directions = _weights(model), _directions(model)
    layers = layers_of(model)
    seen = seen_by(weights, layers, torch.randn(9, 4).double())
    found = kappa_through_data(weights, layers, seen, [T[0] for _, T in directions])
    assert float(found) == pytest.approx(float(kappa(weights, directions)), rel=1e-10)


def test_a_mean_with_its_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(0.1), nn.Linear(5, 4))
    before = _weights(model.float())
    found = curvature(model, draws=50)
    assert found.mean == pytest.approx(float(found.values.mean()))
    assert found.standard_error == pytest.approx(float(found.values.std()) / 50**0.5)
    assert found.values.equal(curvature(model, draws=50).values)
    assert not found.values.equal(curvature(model, draws=50, seed=1).values)
    data = [(torch.randn(20, 6), torch.zeros(20)) for _ in range(3)]
    through = curvature(model, data, draws=10)
    assert len(through.values) == 10
    assert through.groups == ("0.weight",)
    assert "draws" in str(found)
    for path, value in _weights(model).items():
        assert value.equal(before[path])


def test_mistakes_are_told() -> None:
    X = torch.randn(5, 4), torch.zeros(5)
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="found ReLU at '1'"):
        curvature(plain, X)
    with pytest.raises(ValueError, match="found Linear"):
        curvature(nn.Linear(4, 3), X)
    with pytest.raises(ValueError, match="at least 2 draws, found 1"):
        curvature(plain, draws=1)
    with pytest.raises(ValueError, match="found none"):
        curvature(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="exclude"):
        curvature(plain, X, symmetries=metaopt.symmetries(plain))
    for parameter in plain.parameters():
        parameter.data.zero_()
    with pytest.raises(ValueError, match="no bend"):
        curvature(plain)
