"""Coefficients of control points, and which of them count where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FEW

from metaopt.landscape.between.layout import KINDS, Layout, between

T = st.floats(0, 1)


@FEW
@given(st.sampled_from(sorted(KINDS)), st.integers(2, 8), T)
def test_coefficients_are_shares(kind: str, count: int, t: float) -> None:
    found = KINDS[kind](count, t)
    assert sum(found) == pytest.approx(1, abs=1e-12)
    assert min(found) >= 0


def test_coefficients_of_three_points() -> None:
    assert KINDS["bezier"](3, 0.25) == [0.5625, 0.375, 0.0625]
    assert KINDS["chain"](3, 0.25) == [0.5, 0.5, 0.0]


@FEW
@given(st.integers(2, 40), st.data())
def test_ends_are_met_although_t_is_rounded(ends: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, ends - 1))
    number, x = between(ends, k / (ends - 1))
    assert x in (0, 1)
    assert number + x == k


@pytest.mark.parametrize("layout", [Layout("bezier", 2, "path", 4), Layout("chain", 1, "star", 4)])
def test_ends_are_control_points_alone(layout: Layout) -> None:
    for k, row in enumerate(layout.end_rows):
        assert layout.at(k / (layout.ends - 1)) == [(row, 1.0)]
    assert sorted([*layout.end_rows, *layout.bend_rows]) == list(range(layout.count))


def test_a_star_goes_through_its_centre() -> None:
    layout = Layout("chain", 1, "star", 3)
    assert layout.at(0.25) == layout.at(0.75) == [(3, 1.0)]
    assert layout.at(0.375) == [(3, 0.5), (1, 0.5)]


@FEW
@given(T)
def test_a_star_is_drawn_from_each_arm_once(u: float) -> None:
    shares = dict(Layout("chain", 1, "star", 3).drawn(u))
    arm = min(int(3 * u), 2)
    assert set(shares) <= {3, arm}
    assert shares.get(arm, 0) == pytest.approx(3 * u - arm)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cubic", 1, "path", 2), "kind must be one of bezier, chain, found 'cubic'"),
        (("chain", 1, "ring", 2), "shape must be one of path, star, found 'ring'"),
        (("chain", 1, "path", 1), "models must be two or more, found 1"),
        (("chain", -1, "path", 2), "bends must not be negative, found -1"),
        (("bezier", 1, "star", 3), "a star has straight arms: give kind='chain' and bends=1"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(*arguments)


def test_t_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r"t must be from 0 to 1, found 1.5"):
        Layout("chain", 1, "path", 2).at(1.5)
