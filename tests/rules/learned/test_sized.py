"""Entries with sizes of their own, and how far generators reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from seen_directions import by_layer, counts_of, seen
from support import SIZES, both_sizes, regression, signed

from metaopt.rules.learned.directions import Basis
from metaopt.rules.learned.features import LOG_RANGE, Seen, rms
from metaopt.rules.learned.sized import (
    LARGEST_SIZE,
    LEAST_SIZE,
    SizedGenerators,
    SizedUpdates,
    reach,
)

FREE = 0.5
BASES = [SizedUpdates(FREE), SizedGenerators(FREE)]


@pytest.mark.parametrize("basis", BASES, ids=lambda basis: type(basis).__name__)
@both_sizes
def test_sizes_of_their_own_are_factors_on_the_entries(sizes: list[int], basis: Basis) -> None:
    at = seen(regression(sizes, samples=4, seed=0))
    counts = counts_of(basis, sizes)
    z = torch.linspace(-1, 1, 4 * len(counts), dtype=torch.float64).reshape(2, 2, -1)
    z[0, 0, 0] = -1e3
    a = signed(2, 2, sum(counts), seed=2)
    parts = []
    for layer, part in enumerate(by_layer(a, counts)):
        factors = (LOG_RANGE * z[:, :, layer].clamp(LEAST_SIZE, LARGEST_SIZE)).exp()
        is_update = isinstance(basis, SizedUpdates)
        root = (at.log_residual * LOG_RANGE / 4).exp()[:, None]
        unit = rms(at.natural[layer])[:, 0] if is_update else root * counts[layer] ** -0.25
        parts.append(FREE * (part[:, 0] * factors[:, :1] + part[:, 1] * factors[:, 1:]) * unit)
    found = by_layer(basis.combine(z, a, counts, at), counts)
    if isinstance(basis, SizedGenerators):
        for T, raw, products in zip(found, parts, at.products, strict=True):
            S = products[:, 0].flatten(1)
            identity = torch.eye(products.shape[-1], dtype=S.dtype).flatten()
            moved = (raw * S).sum(1) / (identity * S).sum(1)
            whole, r = raw - moved[:, None] * identity, reach(products[:, 0])[:, None]
            torch.testing.assert_close(
                T, whole / (1 + (whole.norm(dim=1, keepdim=True) / r) ** 2).sqrt()
            )
            torch.testing.assert_close((T * S).sum(1), torch.zeros(2, dtype=S.dtype))
    else:
        torch.testing.assert_close(found, parts)


def covariance(eigenvalues: list[float], seed: int) -> torch.Tensor:
    """One with these eigenvalues, [1, k, k], in a random frame."""
    Q = torch.linalg.qr(signed(1, len(eigenvalues), len(eigenvalues), seed=seed))[0]
    return Q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ Q.mT


def test_the_reach_of_a_generator_is_twice_the_way_to_white_units() -> None:
    deviations = torch.tensor([3e-3, -1e-3, -2e-3, 0.0], dtype=torch.float64)
    found = reach(7.0 * covariance((1 + deviations).tolist(), seed=0))
    # exp(T) S exp(T) = I for T = -log(S) / 2, of half that length.
    torch.testing.assert_close(found, deviations.norm()[None], rtol=2e-3, atol=0)
    # Four times the divergence of normal distributions.
    S = covariance([2.5, 0.9, 0.5, 0.1], seed=2)
    normal = torch.distributions.MultivariateNormal
    zero = torch.zeros(4, dtype=torch.float64)
    identity = torch.eye(4, dtype=torch.float64)
    divergence = torch.distributions.kl_divergence(normal(zero, S[0]), normal(zero, identity))
    torch.testing.assert_close(reach(S).square(), 4 * divergence[None], rtol=1e-4, atol=0)


def test_the_reach_of_nearly_white_units_is_not_rounding_in_float32() -> None:
    deviations = torch.tensor([1e-4, -1e-4] * 10, dtype=torch.float64)
    S = covariance((1 + deviations).tolist(), seed=1)
    torch.testing.assert_close(reach(S.float()).double(), reach(S), rtol=0.02, atol=0)
    assert reach(covariance([5.0] * 20, seed=1).float()) < 1e-5


@pytest.mark.parametrize("samples", [1, 20, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reach_is_a_number_where_units_are_more_than_samples(
    dtype: torch.dtype, samples: int
) -> None:
    H = signed(1, 300, samples, seed=3).to(dtype)
    found = reach(H @ H.mT)
    # Of a sample more eigenvalues are taken for 1e-5; with rounding, all of them.
    assert (found > (2 * (300 - samples) * 9) ** 0.5).all()
    assert (found < (2 * 300 * 12) ** 0.5).all()
    assert reach(torch.zeros(1, 3, 3, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sized_generators_of_white_units_have_finite_slopes(
    dtype: torch.dtype, size: float
) -> None:
    at = seen(regression([3, 4, 2], samples=4, seed=0)).observation
    white = torch.eye(4, dtype=dtype).expand(2, 4, 4)
    cast = [tuple(x.to(dtype) for x in of) for of in (at.weights, at.grads)]
    loss = None if at.loss is None else at.loss.to(dtype)
    observation = replace(
        at, weights=cast[0], grads=cast[1], inputs=(at.inputs[0].to(dtype), white), loss=loss
    )
    entries = torch.full((2, 16), size, dtype=dtype, requires_grad=True)
    T = SizedGenerators(1.0).project(entries, Seen(observation))
    (slope,) = torch.autograd.grad(T.square().sum() + T.sum(), entries)
    assert slope.isfinite().all()
    assert T.norm() < 1e-5


def test_sized_generators_without_the_loss_are_those_of_outputs_that_are_all_wrong() -> None:
    at = seen(regression(SIZES, samples=4, seed=0))
    blind = Seen(replace(at.observation, loss=None))
    share = (at.log_residual * LOG_RANGE / 2).exp()[:, None, None]
    units = SizedGenerators(1.0).directions(blind).sizes
    assert (share < 1).all()
    torch.testing.assert_close(SizedGenerators(1.0).directions(at).sizes, share.sqrt() * units)
