"""Orbits against the closed forms of their quantities, and the model left as it was."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import signed
from torch import Tensor, nn

from metaopt.landscape import spectrum as spectrum_module
from metaopt.landscape.orbit import Orbit, orbit
from metaopt.landscape.products import GaussNewtonProducts, HessianProducts
from metaopt.landscape.samples import Samples
from metaopt.symmetry.conserved import charges
from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.groups import Group, Symmetry

X, LABELS = signed(9, 3, seed=1), torch.arange(9) % 3
MSE, CROSS = nn.functional.mse_loss, nn.functional.cross_entropy
T = torch.linspace(-2, 2, 5, dtype=torch.float64)
PATHS = ["0.weight", "0.bias", "2.weight", "2.bias"]


def net(linear: bool = False, hidden: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    between: nn.Module = nn.Identity() if linear else nn.LeakyReLU(0.1)
    return nn.Sequential(nn.Linear(3, hidden), between, nn.Linear(hidden, 3)).double()


def only(model: nn.Module) -> Symmetry:
    (found,) = symmetries(model)
    return found


@torch.no_grad()
def grow(model: nn.Module, t: float) -> None:
    """All hidden units by exp(t), in place."""
    for path, sign in (("0.weight", 1), ("0.bias", 1), ("2.weight", -1)):
        model.get_parameter(path).mul_(math.exp(sign * t))


class Stack:
    """Rows of tensors shaped like weights, parted into what is made, what is read, and the rest."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        into = torch.cat([rows["0.weight"], rows["0.bias"][..., None]], dim=2)
        out = rows["2.weight"]
        self.into = torch.einsum("rki,rli->kl", into, into)
        self.out = torch.einsum("rok,rol->kl", out, out)
        self.rest = float(rows["2.bias"].square().sum())

    def along(self, generator: Tensor, likes_gradients: bool) -> Tensor:
        """tr(P A) + tr(P^-1 B) + the rest, P = g^T g for weights and its inverse for gradients."""
        found = []
        for t in T:
            g = torch.linalg.matrix_exp(t * generator)
            P = g.mT @ g
            P, inverse = (torch.linalg.inv(P), P) if likes_gradients else (P, torch.linalg.inv(P))
            found.append((P * self.into).sum() + (inverse * self.out).sum() + self.rest)
        return torch.stack(found)


def stacks(model: nn.Module) -> dict[str, Stack]:
    """Of one measurement at t = 0: weights, mean gradient, noise, roots of the Gauss-Newton."""
    samples = Samples(model, CROSS, (X, LABELS))
    mean = samples.mean_gradient(PATHS)
    each = next(iter(samples.per_sample(PATHS)))
    products = GaussNewtonProducts(samples, PATHS)
    values, vectors = torch.linalg.eigh(products(torch.eye(products.size, dtype=torch.float64)))
    roots = (values.clamp(min=0).sqrt() * vectors).mT
    shapes = {path: p.shape for path, p in model.named_parameters()}
    parts = roots.split([shape.numel() for shape in shapes.values()], dim=1)
    return {
        "squared_norm": Stack({path: p.detach()[None] for path, p in model.named_parameters()}),
        "gradient_norm": Stack({path: g[None] for path, g in mean.items()}),
        "noise_trace": Stack({path: (g - mean[path]) / 3 for path, g in each.items()}),
        "trace": Stack(
            {
                path: part.reshape(-1, *shape)
                for part, (path, shape) in zip(parts, shapes.items(), strict=True)
            }
        ),
    }


GENERATORS: list[Any] = [
    pytest.param(False, None, id="all units alike"),
    pytest.param(False, signed(4, seed=5) / 2, id="each unit its own"),
    pytest.param(True, None, id="identity of GL"),
    pytest.param(True, signed(4, 4, seed=6) / 2, id="a matrix"),
]


@pytest.mark.parametrize(("linear", "generator"), GENERATORS)
def test_closed_forms_from_one_measurement(linear: bool, generator: Tensor | None) -> None:
    model = net(linear)
    wanted = stacks(model)
    found = orbit(model, only(model), CROSS, (X, LABELS), T, generator)
    matrix = found.generator[0] if linear else torch.diag(found.generator[0])
    for name, stack in wanted.items():
        curve = stack.along(matrix, name != "squared_norm")
        measured = getattr(found, name)
        measured = measured**2 if name == "gradient_norm" else measured
        torch.testing.assert_close(measured, curve, rtol=1e-10, atol=0, msg=name)
    assert found.loss_change < 1e-13
    assert found.is_exact
    assert not found.trace_error.any()
    assert not found.cosine_error.any()


def test_two_exponentials_for_the_identity() -> None:
    """c + a e^{2t} + b e^{-2t}: three values say all others."""
    model = net()
    found = orbit(model, "0 -> 2", CROSS, (X, LABELS))
    t = found.t
    basis = torch.stack([torch.ones_like(t), (2 * t).exp(), (-2 * t).exp()], dim=1)
    some = [5, 10, 15]
    for curve in (found.squared_norm, found.gradient_norm**2, found.noise_trace, found.trace):
        fitted = basis @ torch.linalg.solve(basis[some], curve[some])
        torch.testing.assert_close(fitted, curve, rtol=1e-10, atol=0)


def test_charges_along_the_orbit_are_those_of_the_moved_model() -> None:
    model = net()
    found = orbit(model, only(model), CROSS, (X, LABELS), [0.0, 0.3])
    assert found.charge is not None
    torch.testing.assert_close(found.charge[0], charges(model)["0 -> 2"])
    grow(model, 0.3)
    torch.testing.assert_close(found.charge[1], charges(model)["0 -> 2"])
    torch.testing.assert_close(found.total_charge, found.charge.sum(1))
    linear = net(linear=True)
    matrices = orbit(linear, only(linear), CROSS, (X, LABELS), [0.0])
    assert matrices.charge is not None
    assert matrices.total_charge is not None
    assert float(matrices.total_charge) == pytest.approx(float(matrices.charge[0].trace()))


@pytest.mark.parametrize("matrix", ["gauss-newton", "hessian"])
def test_eigenvalue_and_cosine_at_a_point(matrix: str) -> None:
    model = net()
    kind = {"gauss-newton": GaussNewtonProducts, "hessian": HessianProducts}[matrix]
    found = orbit(model, only(model), CROSS, (X, LABELS), [0.7], matrix=matrix, damping=1e-2)
    grow(model, 0.7)
    products = kind(Samples(model, CROSS, (X, LABELS)), PATHS)
    M, g = products(torch.eye(products.size, dtype=torch.float64)), products.gradient()
    # |M| from the singular value decomposition, another way than from eigenvalues.
    _, S, Vh = torch.linalg.svd(M)
    d = torch.linalg.solve(Vh.mT @ torch.diag(S + 1e-2 * S[0]) @ Vh, g)
    assert float(found.cosine) == pytest.approx(float(d @ g / d.norm() / g.norm()), rel=1e-8)
    assert float(found.eigenvalue) == pytest.approx(float(torch.linalg.eigvalsh(M)[-1]), rel=1e-10)
    assert float(found.trace) == pytest.approx(float(M.trace()), rel=1e-10)


def test_traces_of_both_matrices_are_equal_in_a_piecewise_linear_network() -> None:
    """The outputs are linear in each layer, so that the rest of the Hessian has no trace."""
    model = net()
    both = [
        orbit(model, only(model), CROSS, (X, LABELS), T, matrix=matrix).trace
        for matrix in ("gauss-newton", "hessian")
    ]
    torch.testing.assert_close(*both, rtol=1e-11, atol=0)


def test_nothing_changes_along_an_orthogonal_group() -> None:
    model = net(linear=True)
    turned = replace(only(model), group=Group.ORTHOGONAL)
    found = orbit(model, turned, CROSS, (X, LABELS), T)
    assert float((found.generator + found.generator.mT).norm()) == 0
    assert float(found.generator.norm()) == pytest.approx(1)
    assert found.charge is None
    for name in ("squared_norm", "gradient_norm", "noise_trace", "trace", "eigenvalue", "cosine"):
        curve = getattr(found, name)
        torch.testing.assert_close(curve, curve[:1].expand(5), rtol=1e-9, atol=0, msg=name)


def test_rotations_of_pairs_change_nothing_and_their_scales_do() -> None:
    model = net(linear=True)
    found = only(model)
    pairs = replace(
        found,
        group=Group.ROTARY,
        allows=frozenset({Group.ROTARY}),
        blocks=2,
        size=2,
        incoming=tuple(replace(slot, factors=()) for slot in found.incoming),
        outgoing=tuple(replace(slot, factors=()) for slot in found.outgoing),
    )
    turn = torch.tensor([[0.0, 1.0], [0.0, -2.0]])
    turned = orbit(model, pairs, CROSS, (X, LABELS), T, turn)
    torch.testing.assert_close(turned.trace, turned.trace[:1].expand(5), rtol=1e-11, atol=0)
    scaled = orbit(model, pairs, CROSS, (X, LABELS), T)
    whole = orbit(model, only(model), CROSS, (X, LABELS), T)
    torch.testing.assert_close(scaled.trace, whole.trace, rtol=1e-11, atol=0)
    assert scaled.loss_change < 1e-13


def test_gradients_stay_along_a_translation() -> None:
    model = nn.Sequential(*net(), nn.LogSoftmax(-1))
    found = {one.name: one for one in symmetries(model)}
    moved = next(one for one in found.values() if one.group is Group.TRANSLATION)
    curve = orbit(model, moved, nn.functional.nll_loss, (X, LABELS), T)
    assert curve.loss_change < 1e-13
    torch.testing.assert_close(curve.trace, curve.trace[:1].expand(5), rtol=1e-10, atol=0)
    # |w + t v|^2 is a parabola, and |v| = 1 in each of the 3 units that share it.
    second = curve.squared_norm[2:] - 2 * curve.squared_norm[1:-1] + curve.squared_norm[:-2]
    torch.testing.assert_close(second, torch.full_like(second, 2 * 3.0))
    assert curve.total_charge is not None


def test_large_models_are_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(hidden=12)
    exact = orbit(model, "0 -> 2", CROSS, (X, LABELS), T)
    monkeypatch.setattr(spectrum_module, "EXACT", 0)
    found = orbit(model, "0 -> 2", CROSS, (X, LABELS), T)
    assert not found.is_exact
    # A matrix of 9 samples with 3 outputs has rank 27 at most, which its Krylov space exhausts.
    torch.testing.assert_close(found.trace, exact.trace, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.eigenvalue, exact.eigenvalue, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.cosine, exact.cosine, rtol=1e-6, atol=0)


def test_estimates_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(hidden=12)
    exact = orbit(model, "0 -> 2", CROSS, (X, LABELS), T, matrix="hessian", damping=0.1)
    monkeypatch.setattr(spectrum_module, "EXACT", 0)
    found, again, other = (
        orbit(model, "0 -> 2", CROSS, (X, LABELS), T, seed=seed, matrix="hessian", damping=0.1)
        for seed in (0, 0, 1)
    )
    assert torch.equal(found.trace, again.trace)
    assert torch.equal(found.eigenvalue, again.eigenvalue)
    assert not torch.equal(found.trace, other.trace)
    assert bool((found.trace_error > 0).all())
    assert bool(((found.trace - exact.trace).abs() < 4 * found.trace_error + 1e-9).all())
    torch.testing.assert_close(found.cosine, exact.cosine, rtol=0, atol=1e-3)


def test_only_what_requires_a_gradient_counts() -> None:
    model = net()
    symmetry = only(model)
    model[0].requires_grad_(False)
    found = orbit(model, symmetry, CROSS, (X, LABELS), [0.0, 1.0])
    assert found.squared_norm[0] == pytest.approx(
        float(sum(p.detach().square().sum() for p in model[2].parameters()))
    )


class Failing:
    """A loss that raises at its n-th call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyError("a loss")
        torch.rand(1)
        return CROSS(outputs, targets)


@pytest.mark.parametrize("at", [0, 20, 31])
def test_the_model_is_as_it_was(at: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    model.eval()
    CROSS(model(X.float()), LABELS).backward()
    waiting = CROSS(model(X.float()), LABELS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state = torch.get_rng_state()
    try:
        orbit(model, "0 -> 2", Failing(at), (X.float(), LABELS), [0.5, 0.0, 1.0])
    except KeyError:
        assert at
    else:
        assert not at
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert not model.training
    waiting.backward()


def refused(match: str, **changes: Any) -> None:
    model = changes.pop("model", None) or net()
    given: dict[str, Any] = {
        "symmetry": "0 -> 2",
        "loss": CROSS,
        "data": (X, LABELS),
        "t": [0.0],
    } | changes
    with pytest.raises(ValueError, match=match) as raised:
        orbit(model, **given)
    assert "\n" not in str(raised.value)


def test_refusals() -> None:
    refused("no symmetry '0 -> 9', it has '0 -> 2'", symmetry="0 -> 9")
    refused("t must be one or more finite numbers", t=[0.0, float("nan")])
    refused("t must be one or more finite numbers", t=[])
    refused("matrix must be one of gauss-newton, hessian, found 'fisher'", matrix="fisher")
    refused("damping must be finite and above 0, found 0", damping=0)
    refused("data hold no samples", data=(X[:0], LABELS[:0]))
    refused("data hold no samples", data=[])
    frozen, moved = net().requires_grad_(False), only(net())
    refused("no parameter of the model requires a gradient", model=frozen, symmetry=moved)
    other = replace(only(net()), name="4 -> 5", size=9)
    refused("has 1 blocks of 9 units", symmetry=other)


def test_batch_normalisation_in_training_has_no_per_sample_gradient() -> None:
    model = nn.Sequential(*net(), nn.BatchNorm1d(3).double())
    refused("normalises over the samples of a batch", model=model)
    orbit(model.eval(), "0 -> 2", CROSS, (X, LABELS), [0.0])


def test_the_table() -> None:
    model = net()
    found = orbit(model, "0 -> 2", CROSS, (X, LABELS))
    rows = found.rows()
    assert len(rows) == 21
    assert rows[10]["t"] == 0
    assert rows[10]["loss"] == pytest.approx(CROSS(model(X), LABELS).item())
    text = str(found)
    assert len(text.splitlines()) == 2 + 11 + 2
    assert text.splitlines()[0] == "orbit of 0 -> 2 (positive scaling)"
    assert text.splitlines()[-1] == "M: gauss-newton, exact; damping 0.001"
    assert str(orbit(model, "0 -> 2", CROSS, (X, LABELS), [0.5])).count("\n") == 4
    assert isinstance(found, Orbit)
