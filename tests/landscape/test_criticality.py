"""Criticality on the orbit: the slope of the squared gradient, closed forms, Booth, Rosenbrock."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import metaopt
from metaopt import balance, criticality, teleport
from metaopt.landscape.criticality import alignment, hessian_gradient, share
from metaopt.landscape.sharpness import dot
from metaopt.landscape.velocities import velocity


def _model() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(0.1), nn.Linear(5, 2), nn.Linear(2, 3))
    return model.double(), torch.randn(30, 6).double(), torch.randint(3, (30,))


def test_it_is_the_slope_of_the_squared_gradient() -> None:
    model, X, y = _model()
    symmetries = metaopt.symmetries(model)
    directions = [
        (s, torch.randn(1, *([s.size] * (2 if "linear" in str(s.group) else 1))).double())
        for s in symmetries
    ]

    def loss(at: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(model, at, (X,)), y)

    weights = {path: value.detach() for path, value in model.named_parameters()}
    g, product = hessian_gradient(loss, weights)
    X_xi = velocity(weights, directions)

    def squared(t: float) -> float:
        there = {path: w + t * X_xi[path] for path, w in weights.items()}
        gradient, _ = hessian_gradient(loss, there)
        return float(dot(gradient, gradient))

    h = 1e-4
    slope = (squared(h) - squared(-h)) / (2 * h)
    assert 2 * float(dot(product, X_xi)) == pytest.approx(slope, rel=1e-5)
    assert abs(float(dot(g, X_xi))) < 1e-14
    cosine = float(alignment(loss, weights, directions))
    assert 0 < cosine <= criticality(model, cross_entropy, (X, y)).residual


def test_the_residual_is_the_largest_over_all_generators() -> None:
    model, X, y = _model()
    found = criticality(model, cross_entropy, (X, y))
    weights = {path: value.detach() for path, value in model.named_parameters()}

    def loss(at: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(model, at, (X,)), y)

    _, product = hessian_gradient(loss, weights)
    flat = torch.cat([x.flatten() for x in product.values()])
    rows = []
    for s in metaopt.symmetries(model):
        shape = (1, s.size, s.size) if "linear" in str(s.group) else (1, s.size)
        own = []
        for T in torch.eye(torch.Size(shape).numel()).double().unflatten(1, shape):
            v = velocity(weights, [(s, T)])
            own.append(torch.cat([x.flatten() for x in v.values()]))
        expected = float(share(flat, torch.stack(own)))
        assert found.by_symmetry[s.name] == pytest.approx(expected, rel=1e-6)
        rows += own
    assert found.residual == pytest.approx(float(share(flat, torch.stack(rows))), rel=1e-6)
    assert found.residual >= max(found.by_symmetry.values())
    g = torch.cat([x.flatten() for x in hessian_gradient(loss, weights)[0].values()])
    assert found.gradient_norm == pytest.approx(float(g.norm()))
    assert found.curvature == pytest.approx(float(g @ flat / (g @ g)))
    assert "criticality" in str(found)
    assert [row["symmetry"] for row in found.rows()] == list(found.by_symmetry)


def test_it_is_zero_where_the_gradient_is_least_on_the_orbit() -> None:
    model, X, y = _model()
    assert criticality(model, cross_entropy, (X, y)).residual > 1e-3
    balance(model, "gradient", loss=cross_entropy, data=(X, y))
    assert criticality(model, cross_entropy, (X, y)).residual < 1e-10
    teleport(model, norm=0.5)
    assert criticality(model, cross_entropy, (X, y)).residual > 1e-3


def test_the_scale_of_the_loss_does_not_matter() -> None:
    model, X, y = _model()
    found = criticality(model, cross_entropy, (X, y)).residual
    tenfold = criticality(model, lambda f, t: 10 * cross_entropy(f, t), (X, y)).residual
    assert tenfold == pytest.approx(found)


def _booth(w: dict[str, Tensor]) -> Tensor:
    x, y = w["w"]
    return (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2


def _rosenbrock(w: dict[str, Tensor]) -> Tensor:
    x, y = w["w"]
    return 100 * (x**2 - y) ** 2 + (x - 1) ** 2


def _velocity_of(w: Tensor, name: str) -> Tensor:
    """Of the rotation of (u, v), in which the loss is u^2 + v^2."""
    x, y = w.tolist()
    if name == "booth":
        u, v, J = x + 2 * y - 7, 2 * x + y - 5, [[1.0, 2.0], [2.0, 1.0]]
    else:
        u, v, J = 10 * (x**2 - y), x - 1, [[20 * x, -10.0], [1.0, 0.0]]
    return torch.linalg.solve(torch.tensor(J).double(), torch.tensor([-v, u]).double())


def _residual(w: Tensor, name: str) -> float:
    loss = _booth if name == "booth" else _rosenbrock
    _, product = hessian_gradient(loss, {"w": w})
    return float(share(product["w"], _velocity_of(w, name)[None]))


@pytest.mark.parametrize("name", ["booth", "rosenbrock"])
def test_one_teleport_is_enough_for_booth_and_not_for_rosenbrock(name: str) -> None:
    loss = _booth if name == "booth" else _rosenbrock
    u, v = {"booth": ((5.0 - 10 - 7), (10.0 - 5 - 5)), "rosenbrock": (20.0, -2.0)}[name]
    radius = (u**2 + v**2) ** 0.5
    angles = torch.linspace(0, torch.pi, 1_000_001).double()
    a, b = radius * angles.cos(), radius * angles.sin()
    if name == "booth":
        points = torch.stack([-a / 3 + 2 * b / 3 + 1, 2 * a / 3 - b / 3 + 3], 1)
        J = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()
        squares = (2 * torch.stack([a, b], 1) @ J).square().sum(1)
        assert float(squares.max()) == pytest.approx(5184, rel=1e-9)
    else:
        points = torch.stack([b + 1, (b + 1) ** 2 - a / 10], 1)
        squares = (40 * points[:, 0] * a + 2 * b).square() + (20 * a).square()
    w = points[squares.argmax()]
    assert _residual(w, name) < 1e-4
    # Gradient flow keeps Booth on its eigenvector.
    flow, along = 1e-6, []
    for _ in range(300):
        along.append(_residual(w, name))
        g, _ = hessian_gradient(loss, {"w": w})
        w = w - flow * g["w"]
    assert (max(along) < 1e-4) if name == "booth" else (max(along) > 0.1)


def test_mistakes_are_told() -> None:
    model, X, y = _model()
    with pytest.raises(ValueError, match="acts linearly"):
        criticality(nn.Linear(6, 3).double(), cross_entropy, (X, y))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        criticality(model, cross_entropy, (X, y))
