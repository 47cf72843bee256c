"""Features: formulas, finiteness at zero, order."""

import math
from collections.abc import Callable

import pytest
import torch
from support import regression, signed
from torch import Tensor

from metaopt.network import Weights
from metaopt.rules.features import (
    GENERATOR_FEATURES,
    UPDATE_FEATURES,
    generator_features,
    log_and_sign,
    over_rms,
    raw,
    signed_log,
    update_features,
)
from metaopt.tasks import Observation

LOW, HIGH = 1e-7, 5e-3
COORDINATE = ("update", "group", "step")
SIZES = [5, 4, 3]
DEEP_SIZES = [4, 3, 5, 2]


# Features.


def _known_observation(weights: Weights, grads: Weights, loss: Tensor | None) -> Observation:
    inputs = (grads[0].mT, weights[1].mT)
    return Observation(weights, grads, inputs, loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("zero", ["gradient", "everything"])
@pytest.mark.parametrize("features", [update_features, generator_features])
def test_features_are_finite_at_zero(
    features: Callable[[Observation], Tensor], zero: str, dtype: torch.dtype
) -> None:
    size = 0.0 if zero == "everything" else 1.0
    weights = tuple((size * signed(2, 3, 3, seed=i, dtype=dtype)).requires_grad_() for i in (0, 1))
    grads = tuple(torch.zeros(2, 3, 3, dtype=dtype, requires_grad=True) for _ in range(2))
    loss = torch.zeros(2, dtype=dtype, requires_grad=True)
    found = features(_known_observation(weights, grads, loss))
    assert found.isfinite().all()
    found.backward(signed(*found.shape, seed=7, dtype=dtype))
    for tensor in (*weights, *grads, loss):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "feature", [over_rms, signed_log, lambda g: torch.stack(log_and_sign(g)), raw]
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


@pytest.mark.parametrize("sizes", [SIZES, DEEP_SIZES], ids=["2 layers", "3 layers"])
def test_features_stand_in_the_stated_order(sizes: list[int]) -> None:
    tasks = regression(sizes, samples=4, seed=0)
    seen = tasks.observe(tasks.initial)
    assert seen.loss is not None
    W, G, H = seen.weights, seen.grads, seen.inputs
    for_update = update_features(seen)
    assert for_update.shape == (2, UPDATE_FEATURES, sum(w[0].numel() for w in W))
    torch.testing.assert_close(for_update[:, 3], torch.cat([w.flatten(1) for w in W], 1))
    for_generator = generator_features(seen)
    assert for_generator.shape == (2, GENERATOR_FEATURES, sum(k * k for k in sizes[1:-1]))
    entries = for_generator.transpose(0, 1).split([k * k for k in sizes[1:-1]], 2)
    for i, columns in enumerate(entries):
        wanted = (
            H[i + 1] @ H[i + 1].mT,
            G[i + 1].mT @ G[i + 1],
            G[i] @ G[i].mT,
            W[i + 1].mT @ G[i + 1],
            G[i + 1].mT @ W[i + 1],
            W[i + 1].mT @ W[i + 1],
            W[i] @ W[i].mT,
            torch.eye(sizes[i + 1], dtype=torch.float64).expand(2, -1, -1),
        )
        for column, product in zip(columns, wanted, strict=False):
            direction = product / product.flatten(1).norm(dim=1)[:, None, None]
            found = column.reshape(product.shape)
            torch.testing.assert_close(
                found / found.flatten(1).norm(dim=1)[:, None, None], direction
            )
        torch.testing.assert_close(
            columns[8], (seen.loss.log() / 10)[:, None].expand_as(columns[8])
        )


def test_an_unknown_loss_counts_as_one() -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    seen = tasks.observe(tasks.initial)
    unknown = Observation(seen.weights, seen.grads, seen.inputs, None)
    one = Observation(seen.weights, seen.grads, seen.inputs, torch.ones(2, dtype=torch.float64))
    assert torch.equal(update_features(unknown), update_features(one))
    assert torch.equal(generator_features(unknown), generator_features(one))
