"""Sharpness: quadratics, small radii, the exact Hessian, and what stays on the orbit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy, mse_loss

import metaopt
from metaopt import balance, sharpness, teleport
from metaopt.landscape.gauss_newton import sharpness_stack
from metaopt.landscape.samples import Samples
from metaopt.landscape.sharpness import curvature_along, expected_rise, isotropic, shaped

Named = dict[str, Tensor]


def _classifier(
    width: int = 5, s: type[nn.Module] = nn.LeakyReLU
) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), s(), nn.Linear(width, 2), nn.Linear(2, 3)).double()
    return model, (torch.randn(30, 6).double(), torch.randint(3, (30,)))


def test_directions_are_isotropic_unit_vectors() -> None:
    weights = {"a": torch.zeros(3, 4).double(), "b": torch.zeros(8).double()}
    found = isotropic(weights, 4000, np.random.default_rng(0))
    rows = torch.cat([x.flatten(1) for x in found.values()], 1)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4000).double())
    covariance = rows.mT @ rows / 4000
    torch.testing.assert_close(20 * covariance, torch.eye(20).double(), rtol=0, atol=0.12)
    # Those of the paper lie in one orthant: their mean has a cosine of 0.87 with (1, .., 1).
    assert float(rows.mean(0).norm()) < 0.05
    back = shaped(rows, weights)
    assert all(back[path].equal(found[path]) for path in weights)


def test_the_rise_of_a_quadratic_is_its_curvature_at_any_distance() -> None:
    torch.manual_seed(1)
    H = torch.randn(7, 7).double()
    H = H @ H.mT
    b = torch.randn(7).double()
    w = {"w": torch.randn(7).double()}

    def loss(at: Named) -> Tensor:
        return at["w"] @ H @ at["w"] / 2 + b @ at["w"] + 3

    d = isotropic(w, 50, np.random.default_rng(0))
    along = torch.einsum("mi,ij,mj->m", d["w"], H, d["w"])
    torch.testing.assert_close(curvature_along(loss, w, d), along)
    torch.testing.assert_close(expected_rise(loss, w, d, [2.0]), 2 * along)
    torch.testing.assert_close(expected_rise(loss, w, d, [1.0, 3.0]), 2.5 * along)
    torch.testing.assert_close(expected_rise(loss, w, d, [2.0], chunk=7), 2 * along)


def test_the_rise_has_the_slope_that_differences_have() -> None:
    model, (X, y) = _classifier()
    paths = [path for path, _ in model.named_parameters()]
    weights = [value.detach().requires_grad_() for value in model.parameters()]
    d = isotropic(dict(zip(paths, weights, strict=True)), 3, np.random.default_rng(0))

    def rise(*values: Tensor) -> Tensor:
        def loss(at: Named) -> Tensor:
            return cross_entropy(functional_call(model, at, (X,)), y)

        return expected_rise(loss, dict(zip(paths, values, strict=True)), d, [0.1])

    assert torch.autograd.gradcheck(rise, weights)


def _hessian(model: nn.Module, X: Tensor, y: Tensor) -> Tensor:
    paths = [path for path, _ in model.named_parameters()]
    values = [value.detach() for value in model.parameters()]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([value.numel() for value in values])
        named = {p: x.view_as(v) for p, x, v in zip(paths, parts, values, strict=True)}
        return cross_entropy(functional_call(model, named, (X,)), y)

    found: Tensor = hessian(loss)(torch.cat([value.flatten() for value in values]))
    return found


def test_against_the_exact_hessian() -> None:
    # The kinks of ReLU are no part of a Hessian, but the loss rises over them.
    model, data = _classifier(s=nn.Tanh)
    H = _hessian(model, *data)
    radius = 1e-2
    found = sharpness(model, cross_entropy, data, [radius], draws=4000)
    assert found.trace is not None
    assert found.eigenvalue is not None
    assert found.trace.mean == pytest.approx(float(H.trace()), rel=1e-10)
    assert found.trace.standard_error == 0
    assert found.eigenvalue.mean == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-10)
    small = radius**2 * float(H.trace()) / (2 * len(H))
    assert abs(found.mean - small) < 4 * found.standard_error + 1e-3 * small
    assert found.standard_error < 0.1 * small
    assert found.loss == pytest.approx(float(cross_entropy(model(data[0]), data[1]).detach()))


def test_a_large_model_is_estimated() -> None:
    model, data = _classifier(width=120)
    H = _hessian(model, *data)
    assert len(H) > 1024
    found = sharpness(model, cross_entropy, data, measures=["trace", "eigenvalue"])
    assert found.trace is not None
    assert found.eigenvalue is not None
    assert found.trace.standard_error > 0
    assert abs(found.trace.mean - float(H.trace())) < 4 * found.trace.standard_error
    assert found.eigenvalue.mean == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-4)
    assert found.invariant is None
    assert np.isnan(found.mean)


def test_against_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, data = _classifier()
    operator = curvlinops.HessianLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [data],
        check_deterministic=False,
    )
    H = operator @ torch.eye(sum(p.numel() for p in model.parameters())).double()
    found = sharpness(model, cross_entropy, data, measures=["trace", "eigenvalue"])
    assert found.trace is not None
    assert found.eigenvalue is not None
    assert found.trace.mean == pytest.approx(float(H.trace()), rel=1e-8)
    assert found.eigenvalue.mean == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-8)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.up, self.down, self.out = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        y = y + self.down(self.up(y).relu())
        found: Tensor = self.out(y.mean(1))
        return found


@pytest.mark.parametrize("kind", ["classifier", "attention", "no flattest point"])
def test_one_measure_is_a_property_of_the_orbit(kind: str) -> None:
    model: nn.Module
    model, (X, y) = _classifier()
    if kind == "attention":
        model, X = _Attention().double(), torch.randn(30, 4, 6).double()
    elif kind == "no flattest point":
        # Gradients reach 3 of 5 directions of the hidden space.
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double()
    values, traces = [], []
    for seed in range(3):
        found = sharpness(model, cross_entropy, (X, y), measures=["trace", "invariant"])
        assert found.invariant is not None
        assert found.trace is not None
        values.append(found.invariant.mean)
        traces.append(found.trace.mean)
        teleport(model, norm=0.7, seed=seed)
    exact = 1e-9 if kind != "no flattest point" else 2e-6
    assert values[1:] == pytest.approx([values[0]] * 2, rel=exact)
    assert abs(traces[1] - traces[0]) > 1e-3 * traces[0]


def test_it_is_the_trace_at_the_flattest_point() -> None:
    model, data = _classifier()
    found = sharpness(model, cross_entropy, data, measures=["invariant"]).invariant
    assert found is not None
    balance(model, "sharpness", loss=cross_entropy, data=data)
    paths = [path for path, _ in model.named_parameters()]
    stacks = sharpness_stack(Samples(model, cross_entropy, data), [], also=paths)
    there = sum(float(x.square().sum()) for x in stacks.values())
    assert found.mean == pytest.approx(there, rel=1e-9)


def test_without_a_flattest_point_it_is_a_nuclear_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 2, bias=False)).double()
    data = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    found = sharpness(model, mse_loss, data, measures=["invariant"]).invariant
    assert found is not None
    stacks = sharpness_stack(Samples(model, mse_loss, data), metaopt.symmetries(model))
    A = stacks["0.weight"].transpose(0, 1).flatten(1)
    B = stacks["1.weight"].transpose(0, 2).flatten(1)
    # min over P of tr P A A^T + tr P^-1 B B^T.
    least = 2 * float(torch.linalg.matrix_norm(A.mT @ B, "nuc"))
    assert found.mean == pytest.approx(least, rel=1e-6)


def test_batches_do_not_matter_and_the_model_stays() -> None:
    model, (X, y) = _classifier()
    model.float()
    X = X.float()
    before = {path: value.clone() for path, value in model.state_dict().items()}
    state = torch.get_rng_state()
    whole = sharpness(model, cross_entropy, (X, y), draws=10)
    parts = sharpness(model, cross_entropy, [(X[:10], y[:10]), (X[10:], y[10:])], draws=10)
    assert parts.mean == pytest.approx(whole.mean, rel=1e-3)
    assert parts.invariant is not None
    assert whole.invariant is not None
    assert parts.invariant.mean == pytest.approx(whole.invariant.mean, rel=1e-4)
    assert all(value.equal(before[path]) for path, value in model.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert "rise at distance" in str(whole)
    assert whole.distances[0] == pytest.approx(0.05 * _norm(model))


def _norm(model: nn.Module) -> float:
    return float(torch.cat([x.detach().flatten() for x in model.parameters()]).norm())


class _Loop(nn.Module):
    """Something that vmap cannot run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y * (2 if float(y.sum()) > 1e9 else 1)


def test_models_that_vmap_cannot_run() -> None:
    torch.manual_seed(0)
    model, plain = _Loop().double(), nn.Linear(6, 3).double()
    plain.load_state_dict(model.layer.state_dict())
    data = torch.randn(9, 6).double(), torch.randint(3, (9,))
    found, wanted = (
        sharpness(one, cross_entropy, data, draws=5, measures=["rise"]) for one in (model, plain)
    )
    torch.testing.assert_close(found.values, wanted.values)


def test_mistakes_are_told() -> None:
    model, data = _classifier()
    with pytest.raises(ValueError, match="found 'flatness'"):
        sharpness(model, cross_entropy, data, measures=["flatness"])
    with pytest.raises(ValueError, match="at least 2 draws, found 1"):
        sharpness(model, cross_entropy, data, draws=1)
    with pytest.raises(ValueError, match=r"above 0, found \[-1\]"):
        sharpness(model, cross_entropy, data, [-1])
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        sharpness(nn.Sequential(model, nn.Dropout()), cross_entropy, data)
