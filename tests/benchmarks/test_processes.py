"""Several processes against a model of cost."""

from __future__ import annotations

import math

import pytest

from benchmarks import processes
from benchmarks.process_steps import Steps
from benchmarks.processes import CONFIGS, Link, Row, foretold, foretold_table, rows, table


def test_the_model_adds_compute_and_a_ring() -> None:
    of_one = {64: 1.0, 128: 1.5}
    link = Link("", bandwidth=1e3, latency=1e-2)
    assert foretold(of_one, 128, 1, 10**6, link) == pytest.approx(1.5)
    # 64 each, and every byte but an eighth goes round the ring twice.
    ring = 2 * 7 / 8 * 1e6 / 1e3 + 14 * 1e-2
    assert foretold(of_one, 512, 8, 10**6, link) == pytest.approx(1.0 + ring)
    assert foretold(of_one, 512, 8, 10**6, Link("", math.inf, 0)) == pytest.approx(1.0)


def test_more_processes_than_cores_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(config: str, count: int, batch: int, size: object) -> Steps:
        asked.append((count, batch))
        return Steps(count, batch / 64, 0.25 if count > 1 else 0.0, 4)

    monkeypatch.setattr(processes, "run", run)
    found = list(rows(CONFIGS[:1], processes.FULL, cores=2))
    assert asked == [(1, 64), (1, 32), (2, 64), (1, 16), (4, 64)]
    assert [row.predicted for row in found] == [1.0, 0.5 + 0.25, 2 * 0.25 + 0.25]
    assert table(found).count("\n") == 4


def test_two_processes_take_outer_steps_and_exchange() -> None:
    found = processes.run(CONFIGS[1], 2, 4, processes.SMOKE)
    assert found.processes == 2
    assert found.seconds > 0
    assert found.exchange > 0
    row = Row(CONFIGS[1], 2, 4, found.seconds, 0.1, found.exchange, found.bytes)
    assert "8 nodes" in foretold_table([row])
