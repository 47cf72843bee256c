"""Averaged iterates: the closed form is Schedule-Free's recursion, and its inverse is exact."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FEW

from metaopt.rules.averaging import BETWEEN, Averaging, averages, between

SHAPES = [(3, 4, 2), (3, 5, 1)]


def drawn(seed: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES)
    ahead = torch.randn(3, 1, 13, generator=generator, dtype=torch.float64)
    return weights, ahead


@FEW
@given(st.integers(0, 1000), st.floats(0, 1))
def test_a_step_is_that_of_the_three_sequences(seed: int, c: float) -> None:
    weights, ahead = drawn(seed)
    updates, _ = drawn(seed + 1)
    x = averages(weights, ahead)
    parts = ahead[:, 0].split([8, 5], dim=1)
    z = [y + d.reshape_as(y) for y, d in zip(weights, parts, strict=True)]
    pull = torch.full((1, 1, 2), c, dtype=torch.float64)
    new, new_ahead = Averaging(ahead, pull).step(weights, updates)
    new_x = averages(new, new_ahead)
    left = new_ahead[:, 0].split([8, 5], dim=1)
    for i, y in enumerate(new):
        z_next = z[i] + updates[i]
        x_next = x[i] + c * (z_next - x[i])
        torch.testing.assert_close(new_x[i], x_next)
        torch.testing.assert_close(y, BETWEEN * x_next + (1 - BETWEEN) * z_next)
        torch.testing.assert_close(y + left[i].reshape_as(y), z_next)


def test_nothing_is_averaged_where_the_average_is_pulled_all_the_way() -> None:
    weights, ahead = drawn(0)
    updates, _ = drawn(1)
    zero = torch.zeros_like(ahead)
    new, new_ahead = Averaging(zero, torch.ones(1, 1, 2, dtype=torch.float64)).step(
        weights, updates
    )
    assert not new_ahead.any()
    for y, w, f in zip(new, weights, updates, strict=True):
        torch.testing.assert_close(y, w + f)


def test_steps_of_no_length_leave_everything_where_it_is() -> None:
    weights, ahead = drawn(2)
    still = Averaging(ahead, torch.full((1, 1, 2), 0.3, dtype=torch.float64)).slower([0.0, 0.0])
    new, new_ahead = still.step(weights, tuple(torch.zeros_like(w) for w in weights))
    torch.testing.assert_close(new_ahead, ahead)
    for y, w in zip(new, weights, strict=True):
        torch.testing.assert_close(y, w)


def test_what_trains_is_found_again_from_the_average() -> None:
    weights, ahead = drawn(3)
    for y, w in zip(between(averages(weights, ahead), ahead), weights, strict=True):
        torch.testing.assert_close(y, w)
