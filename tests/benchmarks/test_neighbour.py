"""The benchmark of busy neighbours: it measures every way to wait, and ends what it began."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from benchmarks import neighbour
from benchmarks.neighbour import BAR, OURS, WAITING, Row, Size, neighbours, rows, seconds, table


def test_neighbours_end_with_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen

    def noted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        begun.append(begin(*arguments, **options))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    with neighbours(2):
        assert [process.poll() for process in begun] == [None, None]
    assert all(process.poll() is not None for process in begun)


def test_each_way_has_its_turn_alone_and_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter([2.0, 4.0, *[1.0, 9.0] * (len(WAITING) - 1)])
    turns: list[str] = []

    def turn(waiting: str, _: Size) -> float:
        turns.append(waiting)
        return next(took)

    monkeypatch.setattr(neighbour, "seconds", turn)
    found = rows(Size((), steps=1, warm_up=1, rounds=1))
    assert turns == [name for name in WAITING for _ in range(2)]
    assert found[0] == Row(OURS, 2.0, 4.0)
    text = table(found)
    assert f"2.00 times the quiet time; at most {BAR}: met" in text
    slow = Row(OURS, 1.0, BAR + 0.1)
    assert "missed" in table([slow])


def test_a_process_of_its_own_is_timed() -> None:
    assert seconds(OURS, neighbour.SMOKE) > 0
