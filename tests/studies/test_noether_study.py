"""studies.noether: closed forms by exact moments, exact recursions, and all parts in small."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from running import figures_in_small
from torch import Tensor, nn

from metaopt.base.streams import Stream, item_generator
from metaopt.landscape.noether import noether
from metaopt.symmetry.geometric_mean import geometric_mean, power
from studies.noether import __main__ as command
from studies.noether import mlp, scalar, sharpness, transformer, warmup
from studies.noether.claims import claim, interval, quantile, to_zero
from studies.noether.closed_forms import Linear
from studies.noether.orbits import Problem, displaced, invariants, repeated
from studies.noether.page import text
from studies.noether.rows import linear, normal, problems
from studies.noether.scale import sgd as scale_invariant
from studies.noether.sgd import Runs, descent
from studies.noether.slow_flow import drift, flat

PROBLEMS = problems()


def product(weights: tuple[Tensor, ...]) -> Tensor:
    whole = weights[0]
    for W in weights[1:]:
        whole = W @ whole
    return whole


def of(problem: Problem) -> Linear:
    x = problem.inputs
    return Linear(product(problem.teacher), x.mT @ x / len(x), problem.root @ problem.root.mT)


@pytest.mark.parametrize("key", PROBLEMS)
def test_noise_leaves_the_equilibrium_and_no_other_point_alone(key: str) -> None:
    problem = PROBLEMS[key]
    there = problem.equilibrium()
    assert problem.residual(there) < 1e-11
    assert problem.residual(problem.teacher) > 1e-2
    torch.testing.assert_close(
        problem.outputs(tuple(W[None] for W in there), problem.inputs[None])[0], problem.targets()
    )


@pytest.mark.parametrize("key", ["relu", "modulus", "factorisation", "deep", "attention"])
def test_the_equilibrium_does_not_depend_on_the_start(key: str) -> None:
    problem = PROBLEMS[key]
    elsewhere = tuple(W[0] for W in displaced(problem, 1, 0.3, 0.0, normal(94)))
    other = replace(problem, teacher=elsewhere)
    expected = invariants(problem, problem.equilibrium())
    for name, value in invariants(other, other.equilibrium()).items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_formulas_of_linear_networks_are_the_equilibrium(depth: int) -> None:
    problem = linear(depth)
    formula = tuple(of(problem).deep_equilibrium(3, depth))
    torch.testing.assert_close(product(formula), product(problem.teacher))
    assert problem.residual(formula) < 1e-13
    by_sweeps = invariants(problem, problem.equilibrium())
    for name, value in invariants(problem, formula).items():
        assert float(value) == pytest.approx(float(by_sweeps[name]), rel=1e-9, abs=1e-9)


def test_the_flattest_point_has_the_least_trace_of_the_hessian() -> None:
    problem = of(linear(2))
    U, W = problem.flattest(3)
    x = power(problem.Sx, 0.5)  # rows whose second moment, times their number 3, is Sx

    def loss(theta: Tensor) -> Tensor:
        A, B = theta.view(2, 3, 3)
        return ((problem.V - A @ B) @ x).square().sum()

    H = torch.func.hessian(loss)(torch.stack([U, W]).flatten())
    assert float(H.trace()) == pytest.approx(float(problem.sharpness(U, W)))
    for i in range(5):
        g = torch.linalg.matrix_exp(0.1 * normal(70 + i)(3, 3))
        moved = problem.sharpness(U @ torch.linalg.inv(g), g @ W)
        assert float(moved) > float(problem.sharpness(U, W))


def test_the_geometric_mean_balances() -> None:
    A, B = (X @ X.mT for X in normal(80)(2, 4, 4))
    P = geometric_mean(B, A)
    torch.testing.assert_close(P @ B @ P, A)


@pytest.mark.parametrize("key", ["relu", "factorisation", "attention"])
def test_sgd_moves_charges_by_the_second_order_term_alone(key: str) -> None:
    problem = PROBLEMS[key]
    weights = displaced(problem, 2, 0.2, 0.1, normal(90))
    before = [pair.charge(weights) for pair in problem.pairs]
    runs = Runs(problem, repeated(weights, 1), item_generator(Stream.NOISE_STUDY, 1, 91))
    runs.advance(problem.lr, 1, "")
    step = tuple((W - V) / problem.lr for W, V in zip(weights, runs.weights, strict=True))
    for pair, C in zip(problem.pairs, before, strict=True):
        expected = C + problem.lr**2 * pair.charge(step)
        torch.testing.assert_close(pair.charge(runs.weights), expected, rtol=1e-12, atol=1e-12)


def test_the_slow_flow_keeps_charges_and_turns_units_in_general_position_alone() -> None:
    general, commuting = (PROBLEMS[key] for key in ("factorisation", "factorisation_one"))
    for problem, turns in ((general, True), (commuting, False)):
        w = problem.equilibrium()
        moved = drift(problem, w)
        scale = 1e-4 * float(flat(w).norm() / flat(moved).norm())
        for pair in problem.pairs:
            two = [
                pair.charge(tuple(W + s * V for W, V in zip(w, moved, strict=True)))
                for s in (scale, -scale)
            ]
            assert float((two[0] - two[1]).abs().max()) / (2 * scale) < 1e-5
        assert float(flat(moved).norm()) > 0.1 if turns else float(flat(moved).norm()) < 1e-5


def test_gradient_descent_keeps_charges() -> None:
    problem = PROBLEMS["factorisation"]
    start = displaced(problem, 2, 0.1, 0.05, normal(92))
    ended = descent(problem, start, 0.002, 2000)
    for name, value in invariants(problem, start).items():
        torch.testing.assert_close(invariants(problem, ended)[name], value, rtol=1e-2, atol=1e-2)


def test_claims_say_what_intervals_say() -> None:
    values = np.array([1.0, 1.2, 0.8, 1.1, 0.9])
    mean, low, high = interval(values)
    half = 2.776 * values.std(ddof=1) / math.sqrt(5)
    assert (mean, low, high) == pytest.approx((1, 1 - half, 1 + half))
    assert quantile(30) == pytest.approx(2.0423, abs=1e-4)
    assert claim("", values, "=", 1.1).holds
    assert not claim("", values, "=", 2).holds
    assert claim("", values, "<", 2).holds
    assert claim("", values, ">", 0.5).holds
    assert claim("", values, "~", 9).holds is None
    parabola = [np.array([3 + 2 * x - x**2]) for x in (1.0, 0.5, 0.25)]
    assert to_zero(parabola) == pytest.approx(3)


def test_the_scalar_charge_shrinks_by_an_exact_factor() -> None:
    moments = scalar.Moments(1.0, 1.0)
    u, w = np.array([1.5, 0.3]), np.array([0.5, 2.0])
    x, n = item_generator(Stream.NOISE_STUDY, scalar.SEED, 5).standard_normal((2, 2, 3))
    slope = (((u * w)[:, None] * x - x - n) * x).mean(1)
    after = scalar.run(moments, u, w, 0.1, 3, 1, 5)
    expected = (u**2 - w**2) * (1 - 4 * 0.01 * slope**2)
    assert after[0] ** 2 - after[1] ** 2 == pytest.approx(expected)
    # C0 is 4 Var(x (v x - y)), and Tc where growth vanishes for small learning rates.
    assert moments.decay(1.0) == pytest.approx(4.0)
    small = scalar.Moments(0.001, 1.0)
    rate = scalar.growth(small, small.critical)
    assert abs(rate) < 0.02 * 2 * small.critical * small.beta


def test_norms_of_scale_invariant_weights_follow_their_recursion() -> None:
    ran = scale_invariant(np.array([0.5, 2.0]), 0.02, 0.1, 2, 50, 6)
    assert ran.error < 1e-13


def test_the_transformer_does_not_see_norms() -> None:
    weights = transformer.initial(2)
    text = transformer.Language(2).sentences(3, 8)
    before = transformer.logits(weights, text[..., :-1], 0.0)
    scaled = {name: 3.7 * W if transformer.invariant(name) else W for name, W in weights.items()}
    torch.testing.assert_close(transformer.logits(scaled, text[..., :-1], 0.0), before)
    assert (text[..., 5:] == text[..., : text.shape[-1] - 5]).all()


def test_the_factorisation_of_part_b_follows_autograd() -> None:
    draws = normal(93)
    U, W = draws(1, 30, 40).requires_grad_(), draws(1, 40, 30).requires_grad_()
    x, n = draws(1, 5, 30), draws(1, 5, 30)
    ((x @ W.mT @ U.mT - x - n).square().sum() / 5).backward()
    moved = sharpness._step(U.detach(), W.detach(), x, n, torch.tensor(0.1).double())
    for new, old in zip(moved, (U, W), strict=True):
        assert old.grad is not None
        torch.testing.assert_close(new, old.detach() - 0.1 * old.grad)


def test_rank_one_jumps_to_equal_noise() -> None:
    u, w = warmup.factor_balanced(*warmup.factor_start(3))
    again = warmup.factor_balanced(u, w)
    torch.testing.assert_close(again[0], u)
    torch.testing.assert_close(again[1], w)


def classifier() -> tuple[mlp.Layers, nn.Sequential, Tensor, Tensor]:
    layers = mlp.kaiming((6, 5, 4, 3), 1, 7)
    model = nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
    ).double()
    draws = item_generator(Stream.NOISE_STUDY, 0, 8)
    X = torch.from_numpy(draws.standard_normal((40, 6)))
    y = torch.from_numpy(draws.integers(3, size=40))
    layers = [W.double() for W in layers]
    with torch.no_grad():
        for layer, W in zip((model[0], model[2], model[4]), layers, strict=True):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(W[0, :, :-1])
            layer.bias.copy_(W[0, :, -1])
    return layers, model, X, y


def test_batched_classifiers_agree_with_autograd_and_with_noether() -> None:
    layers, model, X, y = classifier()
    slopes, loss = mlp.gradients(layers, X[None], y[None])
    found = nn.functional.cross_entropy(model(X), y)
    found.backward()
    assert float(loss[0]) == pytest.approx(found.item())
    first = model[0]
    assert isinstance(first, nn.Linear)
    assert first.weight.grad is not None
    torch.testing.assert_close(slopes[0][0, :, :-1], first.weight.grad)
    stand = mlp.standing(layers, X[None], y[None], 0.1, 8)
    flows = noether(model, nn.functional.cross_entropy, (X, y), 8, 0.1)
    t = torch.cat([flow.distance for flow in flows.values()])
    alive = ~stand.t[0].isnan()
    torch.testing.assert_close(t[alive], stand.t[0][alive], rtol=1e-5, atol=1e-6)
    rate = torch.cat([flow.rate for flow in flows.values()])
    torch.testing.assert_close(rate[alive], stand.rate[0][alive], rtol=1e-5, atol=1e-9)


def test_the_classifiers_trace_is_that_of_gauss_newton() -> None:
    layers, _, X, _ = classifier()
    x = X[:5]

    def outputs(*parts: Tensor) -> Tensor:
        return mlp.forward([W[None] for W in parts], x[None])[1][0]

    J = torch.func.jacrev(outputs, argnums=(0, 1, 2))(*(W[0] for W in layers))
    p = outputs(*(W[0] for W in layers)).softmax(-1)
    trace = torch.zeros(())
    for part in J:
        rows = part.flatten(2)
        square = (p[..., None] * rows.square()).sum((1, 2))
        trace = trace + (square - (p[..., None] * rows).sum(1).square().sum(-1)).mean()
    assert float(mlp.curvature(layers, x[None])[0]) == pytest.approx(float(trace), rel=1e-5)


def test_the_page_has_the_tables_of_its_figures() -> None:
    found = json.loads(command.PAGE.path.with_name("noether.json").read_text(encoding="utf-8"))
    assert list(found) == list(command.PARTS)
    assert text(found) in command.PAGE.path.read_text(encoding="utf-8")


def test_all_parts_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures_in_small(monkeypatch, tmp_path, command.main)
    assert list(found) == list(command.PARTS)
    assert all(part["claims"] for part in found.values())
