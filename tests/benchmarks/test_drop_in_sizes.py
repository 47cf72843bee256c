"""The cost of a step by size: what is measured, and what is left out by name."""

from __future__ import annotations

import torch

from benchmarks.drop_in_rivals import ADAMW
from benchmarks.drop_in_sizes import SMALL, Row, makers, rows, square, table, too_long, width_of


def test_every_optimizer_is_measured_at_every_size() -> None:
    found = list(rows(SMALL, torch.device("cpu"), rounds=1))
    assert [(row.size, row.optimizer) for row in found] == [(n, o) for n in SMALL for o in makers()]
    for row in found:
        assert row.parameters == row.size
        if row.optimizer == ADAMW:
            assert row.times == 1
            # Two means and the count of steps of four layers.
            assert row.state_bytes == 8 + 4 * 4 / row.size
        else:
            assert row.times > 0
    assert table(found).count("\n") == len(found) + 1


def test_sizes_that_take_too_long_are_left_out_by_name() -> None:
    known = Row(10**6, "SOAP", 10**6, 0.1)
    assert too_long(None, 10**8, 30) is None
    assert too_long(known, 10**7, 30) is None
    reason = too_long(known, 10**8, 30)
    assert reason == "would take about 3000 s"
    assert "would take about 3000 s" in table([Row(10**8, "SOAP", left_out=reason)])
    assert too_long(Row(10**8, "SOAP", left_out=reason), 10**9, 30) == "left out as the size before"


def test_networks_have_the_parameters_that_are_asked_for() -> None:
    for size in (10**4, 10**5, 10**6):
        assert abs(sum(p.numel() for p in square(width_of(size)).parameters()) / size - 1) < 0.01
