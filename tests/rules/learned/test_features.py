"""Features: formulas, finiteness at zero, order, and what they do not see: scale."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import DEEP_SIZES, FEW, SIZES, both_sizes, layer_sizes, regression, seeds, signed
from torch import Tensor

from metaopt.base.network import LeakyReLU, Weights, forward
from metaopt.rules.base import UnknownInputsError, flat_gradient
from metaopt.rules.learned.directions import NaturalSteps
from metaopt.rules.learned.features import (
    GENERATOR_FEATURES,
    INFORMED_FEATURES,
    LAYER_FEATURES,
    PRODUCTS,
    STEP_SIZE_FEATURES,
    UPDATE_FEATURES,
    Seen,
    generator_features,
    informed_features,
    largest_row_sum,
    layer_features,
    log_and_sign,
    over_rms,
    rms,
    signed_log,
    spread,
    step_size_features,
    update_features,
)
from metaopt.tasks.base import Observation
from metaopt.tasks.regression import TaskBatch

SCALE_FREE = [layer_features, update_features, informed_features, generator_features]
EVERY = [*SCALE_FREE, step_size_features]
every_feature = pytest.mark.parametrize("features", EVERY, ids=lambda f: f.__name__)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)

Features = Callable[[Seen], Tensor]


# At zero.


def at(weights: Weights, Y: Tensor, X: Tensor) -> Observation:
    return TaskBatch(X, Y, weights, LeakyReLU(0.1)).observe(weights)


@every_dtype
@pytest.mark.parametrize("zero", ["residual", "first layer", "last layer", "weights", "inputs"])
@every_feature
def test_features_are_finite_at_zero(features: Features, zero: str, dtype: torch.dtype) -> None:
    """With the derivatives that second-order meta-gradients take."""
    tasks = regression(DEEP_SIZES, samples=4, seed=0)
    X, Y = tasks.X.to(dtype), tasks.Y.to(dtype)
    weights = [W.to(dtype) for W in tasks.initial]
    if zero == "residual":
        Y = forward(weights, X, tasks.s).outputs
    for layer, W in enumerate(weights):
        if zero == "weights" or (zero, layer) in {("first layer", 0), ("last layer", 2)}:
            weights[layer] = torch.zeros_like(W)
    X = torch.zeros_like(X) if zero == "inputs" else X
    leaves = tuple(W.detach().requires_grad_() for W in weights)
    found = features(Seen(at(leaves, Y, X)))
    assert found.isfinite().all()
    found.backward(signed(*found.shape, seed=7, dtype=dtype))
    for W in leaves:
        assert W.grad is not None
        assert W.grad.isfinite().all()


@every_dtype
@pytest.mark.parametrize(
    "feature", [rms, over_rms, signed_log, lambda g: torch.stack(log_and_sign(g))]
)
def test_gradient_features_have_finite_derivatives_at_zero(
    feature: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    g = torch.zeros(2, 3, 3, dtype=dtype, requires_grad=True)
    found = feature(g)
    assert found.isfinite().all()
    found.sum().backward()
    assert g.grad is not None
    assert g.grad.isfinite().all()


@every_feature
@pytest.mark.parametrize("size", [1e-8, 1e-4, 1e4, 1e8])
def test_features_are_of_order_one_in_float32(features: Features, size: float) -> None:
    tasks = regression(DEEP_SIZES, samples=4, seed=0)
    leaves = tuple((W.float() * size**0.3).requires_grad_() for W in tasks.initial)
    found = features(Seen(at(leaves, tasks.Y.float() * size, tasks.X.float())))
    assert float(found.detach().abs().max()) < 20
    found.backward(signed(*found.shape, seed=7, dtype=torch.float32))
    assert all(W.grad is not None and W.grad.isfinite().all() for W in leaves)


# Formulas.


@pytest.mark.parametrize("magnitude", [1e8, 1.0, 1e-8, 1e-13, 1e-16])
def test_over_rms_knows_no_scale(magnitude: float) -> None:
    # Products of two gradients of 3e-7 are of the order 1e-13.
    g = (magnitude * signed(2, 3, 3, seed=0, dtype=torch.float32)).requires_grad_()
    found = over_rms(g)
    torch.testing.assert_close(found, over_rms(g.detach() / magnitude), rtol=1e-4, atol=0)
    (found * signed(2, 3, 3, seed=1, dtype=torch.float32)).sum().backward()
    assert g.grad is not None
    assert g.grad.isfinite().all()


def test_feature_formulas() -> None:
    g = torch.tensor([1.0, math.exp(-5), -math.exp(-5), math.exp(-11), 0.0], dtype=torch.float64)
    log, sign = log_and_sign(g)
    torch.testing.assert_close(log.tolist(), [0.0, -0.5, -0.5, -1.0, -1.0])
    torch.testing.assert_close(sign.tolist(), [1.0, 1.0, -1.0, math.exp(-1), 0.0])
    torch.testing.assert_close(signed_log(g).tolist(), [1.0, 0.5, -0.5, 0.0, 0.0])
    assert over_rms(torch.tensor([[[3.0, -3.0]], [[0.0, 0.0]]])).tolist() == [
        [[1.0, -1.0]],
        [[0.0, 0.0]],
    ]
    S = torch.tensor([[2.0, -1.0], [0.5, 4.0]], dtype=torch.float64)
    assert float(largest_row_sum(S)) == 4.5
    torch.testing.assert_close(float(spread(S)), math.log(4.5 / 3) / 3)
    assert float(spread(torch.eye(3, dtype=torch.float64) * 7)) == pytest.approx(0, abs=1e-15)


@both_sizes
def test_features_stand_in_the_stated_order(sizes: list[int]) -> None:
    tasks = regression(sizes, samples=4, seed=0)
    observation = tasks.observe(tasks.initial)
    seen = Seen(observation)
    W, G, H = observation.weights, observation.grads, observation.inputs
    layers = len(W)
    residual, outputs = tasks.outputs(W) - tasks.Y, tasks.outputs(W)
    squares = [x.square().sum((1, 2)) for x in (residual, outputs)]
    wrong = (squares[0] / (squares[0] + squares[1])).log() / 10
    torch.testing.assert_close(seen.log_residual, wrong)

    of_layers = layer_features(seen)
    assert of_layers.shape == (2, LAYER_FEATURES, layers)
    for i in range(layers):
        ratio = seen.natural[i].norm(dim=(1, 2)) / W[i].norm(dim=(1, 2))
        gram = H[i] @ H[i].mT
        most = gram.abs().sum(2).amax(1) / gram.diagonal(dim1=1, dim2=2).mean(1)
        last = torch.full((2,), float(i == layers - 1), dtype=torch.float64)
        columns = torch.stack([wrong, ratio.log() / 10, most.log() / 3, last], dim=1)
        torch.testing.assert_close(of_layers[:, :, i], columns)

    for_update = update_features(seen)
    assert for_update.shape == (2, UPDATE_FEATURES, sum(w[0].numel() for w in W))
    for columns, w, g, own in zip(
        for_update.split([w[0].numel() for w in W], 2), W, G, of_layers.unbind(2), strict=True
    ):
        size = g.square().mean((1, 2), keepdim=True).sqrt()
        log, sign = log_and_sign(g / size)
        weight = w / w.square().mean((1, 2), keepdim=True).sqrt()
        wanted = torch.stack([x.flatten(1) for x in (g / size, log, sign, weight)], dim=1)
        torch.testing.assert_close(columns[:, :4], wanted)
        torch.testing.assert_close(columns[:, 4:], own[:, :, None].expand_as(columns[:, 4:]))

    for_generator = generator_features(seen)
    assert for_generator.shape == (2, GENERATOR_FEATURES, sum(k * k for k in sizes[1:-1]))
    entries = for_generator.transpose(0, 1).split([k * k for k in sizes[1:-1]], 2)
    for i, columns in enumerate(entries):
        gram = H[i + 1] @ H[i + 1].mT
        products = (
            G[i + 1].mT @ G[i + 1],
            G[i] @ G[i].mT,
            W[i + 1].mT @ G[i + 1],
            G[i + 1].mT @ W[i + 1],
            W[i + 1].mT @ W[i + 1],
            W[i] @ W[i].mT,
        )
        mean = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        matrices = [
            gram / mean,
            *(P / P.square().mean((1, 2), keepdim=True).sqrt() for P in products),
            torch.eye(sizes[i + 1], dtype=torch.float64).expand(2, -1, -1),
            wrong[:, None, None].expand_as(gram),
            (of_layers[:, 2, i + 1])[:, None, None].expand_as(gram),
        ]
        for column, matrix in zip(columns, matrices, strict=True):
            torch.testing.assert_close(column.reshape(matrix.shape), matrix)

    with_scale = step_size_features(seen)
    assert with_scale.shape[1] == STEP_SIZE_FEATURES
    assert torch.equal(with_scale[:, :-2], for_generator)
    logs = -seen.curvatures.log() / 10
    largest = logs.min(1, keepdim=True).values
    torch.testing.assert_close(with_scale[:, -2], largest.expand_as(with_scale[:, -2]))
    second = with_scale[:, -1].split([k * k for k in sizes[1:-1]], 1)
    for i, column in enumerate(second):
        torch.testing.assert_close(column, logs[:, i + 1 : i + 2].expand_as(column))


@both_sizes
def test_informed_features_are_those_of_updates_and_gradients_by_products(
    sizes: list[int],
) -> None:
    tasks = regression(sizes, samples=4, seed=0)
    seen = Seen(tasks.observe(tasks.initial))
    found = informed_features(seen)
    counts = [W[0].numel() for W in tasks.initial]
    assert found.shape == (2, INFORMED_FEATURES, sum(counts))
    assert torch.equal(found[:, :UPDATE_FEATURES], update_features(seen))
    G = seen.observation.grads
    for layer, columns in enumerate(found[:, UPDATE_FEATURES:].split(counts, 2)):
        of_last = layer == len(counts) - 1
        for p in range(PRODUCTS):
            S = seen.products[layer - 1 if of_last else layer][:, p]
            times = G[layer] @ S if of_last else S @ G[layer]
            size = times.square().mean((1, 2), keepdim=True).sqrt()
            torch.testing.assert_close(columns[:, p], (times / size).flatten(1))


def test_without_inputs_or_loss_updates_have_features_still() -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    whole = tasks.observe(tasks.initial)
    for inputs, loss in (((), whole.loss), (whole.inputs, None), ((), None)):
        seen = Seen(Observation(whole.weights, whole.grads, inputs, loss))
        assert torch.equal(seen.log_residual, torch.zeros(2, dtype=torch.float64))
        found, known = update_features(seen), update_features(Seen(whole))
        assert found.isfinite().all()
        assert torch.equal(found[:, :4], known[:, :4])
    size = torch.cat([G.flatten(1) for G in whole.grads], dim=1).square().mean(1).sqrt()
    for N, G in zip(seen.natural, whole.grads, strict=True):
        torch.testing.assert_close(N, G / size[:, None, None])


def test_without_inputs_steps_fade_by_themselves() -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    whole = tasks.observe(tasks.initial)
    one = Observation(whole.weights, whole.grads, (), None)
    first, later = Seen(one), Seen(one, 99 * Seen(one).squares)
    for N, last in zip(first.natural, later.natural, strict=True):
        # Under noise that stays: one over the root of the steps so far.
        torch.testing.assert_close(last, N / 10)
    # With the gradient, at once; and no step is of a share of the weights.
    vanishing = Observation(whole.weights, tuple(1e-6 * G for G in whole.grads), (), None)
    converged = Seen(vanishing, first.squares)
    for N, last in zip(first.natural, converged.natural, strict=True):
        torch.testing.assert_close(last, 1e-6 * N)
    found = NaturalSteps(free=1.0).directions(converged)
    assert float(found.sizes.abs().max()) < 1e-5
    # Where inputs are known nothing is remembered.
    assert torch.equal(Seen(whole, first.squares).squares, first.squares)
    # Entries that do not move are not counted.
    padded = tuple(torch.cat([G, torch.zeros_like(G)], dim=1) for G in whole.grads)
    same = Seen(Observation(padded, padded, (), None))
    torch.testing.assert_close(same.squares, first.squares)


def test_without_inputs_there_are_no_products() -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    whole = tasks.observe(tasks.initial)
    seen = Seen(Observation(whole.weights, whole.grads, (), whole.loss))
    for features in (informed_features, generator_features, step_size_features):
        with pytest.raises(UnknownInputsError, match="not known here"):
            features(seen)


# What features do not see.

factors = st.floats(-2, 2).map(lambda exponent: 10**exponent)


def scaled(tasks: TaskBatch, of_inputs: float, of_layers: list[float]) -> TaskBatch:
    """The task with X and W_l times factors, and the targets along with the outputs."""
    weights = tuple(W * c for W, c in zip(tasks.initial, of_layers, strict=True))
    return TaskBatch(
        tasks.X * of_inputs, tasks.Y * of_inputs * math.prod(of_layers), weights, tasks.s
    )


@FEW
@given(sizes=layer_sizes, seed=seeds, data=st.data())
def test_features_know_no_scale(sizes: list[int], seed: int, data: st.DataObject) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    layers = len(sizes) - 1
    drawn = data.draw(st.lists(factors, min_size=layers + 1, max_size=layers + 1))
    other = scaled(tasks, drawn[0], drawn[1:])
    plain, found = (Seen(t.observe(t.initial)) for t in (tasks, other))
    for features in SCALE_FREE:
        torch.testing.assert_close(features(found), features(plain), rtol=1e-8, atol=1e-8)
    # -N is a step on the weights: it scales as they do.
    for N, own, c in zip(found.natural, plain.natural, drawn[1:], strict=True):
        torch.testing.assert_close(N, own * c, rtol=1e-8, atol=1e-12 * c)


def test_flat_gradient() -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    observation = tasks.observe(tasks.initial)
    flat = flat_gradient(observation)
    assert torch.equal(flat, torch.cat([G.reshape(2, -1) for G in observation.grads], 1))


@pytest.mark.parametrize("case", ["nothing wrong in large outputs", "no weights, large step"])
def test_logarithms_of_ratios_do_not_overflow_in_float32(case: str) -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    X, Y, (W1, W2) = tasks.X.float(), tasks.Y.float(), (W.float() for W in tasks.initial)
    if case == "nothing wrong in large outputs":
        W2 = W2 * 1e6
        Y = forward((W1, W2), X, tasks.s).outputs
    else:
        W1, W2 = W1 * 1e-6, W2 * 0
    leaves = (W1.requires_grad_(), W2.requires_grad_())
    found = layer_features(Seen(at(leaves, Y, X)))
    assert found.isfinite().all()
    found.backward(signed(*found.shape, seed=7, dtype=torch.float32))
    assert all(W.grad is not None and W.grad.isfinite().all() for W in leaves)
