"""The plane of docs/guide/connecting.md: exact values, and what the command prints is on it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize

import metaopt
from studies.connecting import (
    ACROSS,
    BEZIER,
    CHAIN,
    CHORD,
    DATA,
    END,
    ORBIT,
    PAGE,
    POINTS,
    START,
    Array,
    curves,
    network,
    points,
    table,
)

T, SHARES = np.polynomial.legendre.leggauss(40)
T, SHARES = (T + 1) / 2, SHARES / 2


def bend(kind: str, point: Array) -> Array:
    """(u, w) along a curve with one bend, at the points of a quadrature."""
    if kind == BEZIER:
        shares = np.stack([(1 - T) ** 2, 2 * T * (1 - T), T**2], axis=1)
    else:
        shares = np.stack([np.clip(1 - np.abs(2 * T - i), 0, None) for i in range(3)], axis=1)
    return np.asarray(shares @ np.array([START, point, END]))


@pytest.mark.parametrize(("kind", "within"), [(BEZIER, 0.01), (CHAIN, 0.02)])
def test_bends_are_where_the_mean_loss_is_least(kind: str, within: float) -> None:
    def mean(point: Array) -> float:
        u, w = bend(kind, point).T
        return float(SHARES @ (1 - u * w) ** 2)

    best = minimize(mean, np.array([1.0, 1.0])).x
    weights = curves()[kind].control_point(1)
    found = [float(weights[f"{layer}.weight"]) for layer in (1, 0)]
    np.testing.assert_allclose(found, best, atol=within)


def test_chord_and_orbit_have_closed_forms() -> None:
    chord, orbit, across = (
        curves()[name].evaluate(DATA, POINTS) for name in (CHORD, ORBIT, ACROSS)
    )
    assert chord.barrier == pytest.approx((1 - 25 / 9) ** 2)
    assert across.barrier == pytest.approx(1.0)
    assert float(orbit.loss.max()) < 1e-28
    u, w = points(curves()[ORBIT], np.linspace(0, 1, 9)).T
    np.testing.assert_allclose(u * w, 1.0)
    length, _ = quad(lambda u: np.sqrt(1 + u**-4), START[0], END[0])
    assert orbit.length == pytest.approx(length, rel=1e-3)


def test_no_orbit_leads_to_the_opposite_end() -> None:
    model = network(START)
    (symmetry,) = metaopt.symmetries(model)
    with pytest.raises(ValueError, match="factors must be above 0"):
        metaopt.symmetry_curve(model, symmetry, torch.tensor([[-1.0]], dtype=torch.float64))


def test_the_page_has_the_table() -> None:
    page = PAGE.path.read_text(encoding="utf-8")
    shown = page.split(f"<!-- {PAGE.name} -->")[1].split(f"<!-- end of {PAGE.name} -->")[0]
    number = r"-?\d+\.\d+"
    assert re.sub(number, "", shown).split() == re.sub(number, "", table()).split()
    pairs = zip(re.findall(number, shown), re.findall(number, table()), strict=True)
    for expected, found in pairs:
        assert float(found) == pytest.approx(float(expected), abs=2e-3)
