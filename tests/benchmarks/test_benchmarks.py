"""Benchmarks measure what they say: a plain loop takes the package's own step, counts are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_coordinates import PlainCoordinates
from torch import Tensor

from benchmarks import (
    breakdown,
    cost,
    counting,
    machine,
    plain_loop,
    speed,
    sweep,
    time_to_quality,
    timing,
)
from benchmarks.plain_loop import PlainLoop, initial
from benchmarks.sweep import WHOLE, Cost, Mode, Piece, Work, measured, predicted, too_much
from benchmarks.timing import Side, compare
from metaopt.base.config import load
from metaopt.base.errors import UserError
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from metaopt.rules.learned.precision import Precision

CPU = torch.device("cpu")
PAPER = "paper/lstm_update_tele.yaml"
COORDINATE = "coordinate_update_tele.yaml"
TINY = tuple(
    f"task.{size}={value}"
    for size, value in (("width", 3), ("inputs", 4), ("outputs", 2), ("samples", 3))
)


def config_of(name: str, batch: int, dtype: str, *more: str) -> TrainConfig:
    same = (*WHOLE, *plain_loop.SAME_RECIPE)
    return load(TrainConfig, name, [*same, f"meta.batch={batch}", f"dtype={dtype}", *more])


def known(name: str, basis: str) -> list[str]:
    """A basis, and what stands with it, set in a configuration."""
    rules = ["update"] if name.endswith("update.yaml") else ["update", "teleport"]
    chosen = [f"rules.{rule}.basis={basis}" for rule in rules]
    if basis == "directions" and "lstm" in name:
        chosen += [f"rules.{rule}.gradient=stateful" for rule in rules]
    return chosen


@pytest.mark.parametrize(
    ("name", "plain", "batch", "basis"),
    [
        (PAPER, PlainLoop, 1, "entries"),
        ("paper/lstm_update.yaml", PlainLoop, 1, "entries"),
        (COORDINATE, PlainCoordinates, 2, "entries"),
        (COORDINATE, PlainCoordinates, 2, "directions"),
        (COORDINATE, PlainCoordinates, 2, "sized"),
        ("coordinate_update.yaml", PlainCoordinates, 2, "directions"),
    ],
)
def test_plain_loops_meta_train_as_the_package_does(
    name: str, plain: Any, batch: int, basis: str
) -> None:
    """Losses, meta-gradients, clip, Adam, schedule and the next tasks: over two trajectories."""
    config = config_of(name, batch, "float64", "meta.steps=20", *known(name, basis))
    trainer, rival = MetaTrainer(config, CPU), plain(config, initial(config), CPU)
    for _ in range(3):
        assert rival.window() == pytest.approx(trainer.outer_step().meta_loss, rel=1e-9)


def test_counts_are_the_known_ones() -> None:
    pair, update = load(TrainConfig, PAPER), load(TrainConfig, "paper/lstm_update.yaml")
    assert counting.multiply_adds_forward(pair) == 4_440_000
    assert sum(shape.on_inputs for shape in counting.network_shapes(pair)) == 1_920_000
    assert counting.training_flop(pair) == pytest.approx(2.25e9, rel=2e-3)
    assert counting.training_flop(update) == pytest.approx(1.16e9, rel=5e-3)
    coordinate = load(TrainConfig, COORDINATE)
    assert counting.training_flop(coordinate) == pytest.approx(3.9e9, rel=0.03)
    assert counting.evaluation_flop(pair) == pytest.approx(0.888e9)


@pytest.mark.parametrize(
    "config", [PAPER, COORDINATE, "lstm_lr_tele.yaml", "coordinate_lr_tele.yaml"]
)
def test_products_that_are_made_are_those_that_are_counted(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def counted(name: str, of: Callable[..., Tensor], first: int) -> None:
        def product(self: Precision, *given: Tensor, **out: Tensor) -> Tensor:
            nonlocal made
            a, b = given[first : first + 2]
            made += 2 * a.numel() * b.shape[-2 if name == "outer" else -1]
            return of(self, *given, **out)

        monkeypatch.setattr(Precision, name, product)

    counted("plus", Precision.plus, 1)
    counted("times", Precision.times, 0)
    counted("outer", Precision.outer, 0)
    work = Work(config, "meta-training", 2, (*TINY, "meta.steps=6", "meta.unroll=3"))
    work.ready(2, CPU)()
    assert made == 2 * counting.training_flop(work.loaded())


def test_predictions() -> None:
    assert predicted([Cost(2, 1.0, 10)], 8) == Cost(8, 4.0, 40)
    # What every call costs is not multiplied.
    assert predicted([Cost(1, 1.5, 11), Cost(2, 2.0, 12)], 4) == Cost(4, 3.0, 14)
    assert predicted([Cost(2, 1.0, 10)], 4, power=2).seconds == 4.0
    # Small sizes are timed in a few milliseconds, the larger one by chance faster than the smaller.
    assert too_much([Cost(1, 0.02, 1), Cost(2, 0.01, 1)], 10**9, in_groups=True) is not None
    assert too_much([], 10**9) is None
    assert too_much([Cost(1, 1.0, 1)], 32) is None
    assert too_much([Cost(1, 1.0, 1)], 64) == "would take about 64 s"
    assert too_much([Cost(1, 0.1, 2**30)], 5) == "would take about 5.0 GB"
    assert too_much([Cost(1, 0.1, 2**30)], 5, in_groups=True) is None
    assert too_much([Cost(1, 1.0, 1)], 64, in_groups=True) == "would take about 64 s"
    large = Work(COORDINATE, "meta-training", 1024)
    assert large.in_groups(CPU)
    assert not large.in_groups(torch.device("cuda"))
    assert not replace(large, batch=64).in_groups(CPU)
    assert not replace(large, mode="evaluation").in_groups(CPU)


def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    took = iter([1.0, 6.0, 9.0, 4.0, 2.0, 5.0])
    monkeypatch.setattr(timing, "seconds", lambda run, device: run() or next(took))
    sides = {name: Side(partial(turns.append, name), 2.0) for name in "ab"}
    # Medians of 1, 9, 2 and of 6, 4, 5, for two units each; the first turn of each is not timed.
    assert compare(sides, CPU, repeats=3) == {"a": 1.0, "b": 2.5}
    assert turns == list("abababab")


def test_rates_are_work_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine, "median_seconds", lambda run, device, repeats: run() is None or 0.5
    )
    assert machine.matmul_flops(CPU, 128) == 2 * 128**3 / 0.5
    assert machine.copy_bytes(CPU, 2**20) == 2 * 2**20 / 0.5


def test_peak_memory_grows_with_the_batch_and_not_with_the_trajectory() -> None:
    def work(batch: int, steps: int) -> Work:
        more = (f"meta.steps={steps}", "meta.unroll=5")
        return Work("coordinate_update.yaml", "meta-training", batch, more)

    batches = measured([Piece(batch, work(batch, 5)) for batch in (4, 16)], CPU)
    # A step of a trajectory keeps at least its gates, 80 numbers a weight and cell.
    assert batches[16].peak_bytes > 16 * 5 * 800 * 2 * 80 * 4
    assert batches[16].peak_bytes < 4.5 * batches[4].peak_bytes
    longer = measured([Piece(20, work(4, 20), 4)], CPU)
    assert longer[20].peak_bytes < 1.3 * batches[4].peak_bytes


@pytest.mark.parametrize("mode", ["meta-training", "evaluation"])
def test_scaling_names_what_it_leaves_out(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    works = [Work("coordinate_update.yaml", mode, batch, TINY) for batch in (1, 2, 10**9)]
    rows = list(speed.scaling(works, CPU, matmul_flops=1e11, budget=0.01))
    assert [row.left_out is None for row in rows] == [True, True, False]
    assert "would take about" in speed.table(rows)
    for row in rows[:2]:
        assert row.share == pytest.approx(row.flop / row.seconds / 1e11)


def test_comparison() -> None:
    work = Work(PAPER, "meta-training", 2, (*TINY, "meta.steps=20"))
    found = plain_loop.compared(work, CPU, budget=0.01)
    assert found.ratio == found.loop / found.metaopt
    assert f"({found.ratio:.2f}x)" in plain_loop.table([found])


def test_parts_add_up_to_the_outer_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is a second further each time it is read."""
    ticks = count()
    monkeypatch.setattr("benchmarks.breakdown.time.perf_counter", lambda: float(next(ticks)))
    windows = 2
    found = breakdown.breakdown(Work(COORDINATE, "meta-training", 2, TINY), windows, CPU)
    assert set(found) == set(breakdown.PARTS)
    # All seconds but the one between the two windows.
    assert sum(value or 0 for value in found.values()) == (next(ticks) - windows) / windows
    assert found[breakdown.ADAM] == 1
    assert " 50 % |" in breakdown.table({"tiny": found}, {"tiny": 0.5}).splitlines()[-1]


def test_the_rate_of_the_products_is_theirs_alone() -> None:
    work = Work(PAPER, "meta-training", 4, (*TINY, "meta.steps=6", "meta.unroll=3"))
    parts: dict[str, float | None] = {breakdown.PRODUCTS: 2.0, breakdown.BACKWARD: 7.0}
    # What a window takes is done in two seconds, on a machine that could do it in one.
    of_a_window = 4 * counting.training_flop(work.loaded()) / 2
    rate = breakdown.rate_of_products(work, parts, of_a_window)
    assert rate == pytest.approx(0.5)
    assert breakdown.rate_of_products(work, {breakdown.PRODUCTS: None}, 1e9) is None


def test_nested_parts_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 5.0, 7.0])
    monkeypatch.setattr("benchmarks.breakdown.time.perf_counter", lambda: next(ticks))
    watch = breakdown.Stopwatch(CPU)
    with watch.part("outer"), watch.part("inner"):
        pass
    assert watch.seconds == {"outer": 3.0, "inner": 4.0}


def test_marks() -> None:
    config = load(TrainConfig, "coordinate_update.yaml")
    found = [(mark.step, mark.loss) for mark in time_to_quality.marks(config)]
    assert found == [(20, 19.1), (20, 19.1 / 2), (100, 22.1), (100, 22.1 / 2)]
    for name in time_to_quality.CONFIGS:
        assert len(time_to_quality.marks(load(TrainConfig, name))) == 4
    with pytest.raises(UserError, match="no published figures"):
        time_to_quality.marks(config.model_copy(update={"label": "mine"}))


def test_an_attempt_ends_when_all_marks_are_passed_or_time_is_over() -> None:
    more = [*TINY, "meta.steps=4", "meta.unroll=2", "meta.batch=2", "validation.tasks=2"]
    config = load(TrainConfig, "coordinate_update.yaml", more)
    easy, hard = time_to_quality.Mark(4, 1e9), time_to_quality.Mark(2, 0.0)
    quick = time_to_quality.attempt("tiny.yaml", config, [easy], 60, CPU)
    passed = quick.passed[easy]
    assert passed is not None
    assert quick.outer_steps < config.meta.outer_steps
    assert passed.not_before <= passed.seconds == quick.seconds
    assert passed.trajectories == quick.outer_steps
    slow = time_to_quality.attempt("tiny.yaml", config, [easy, hard], 0.3, CPU)
    assert slow.passed[hard] is None
    assert slow.seconds >= 0.3
    assert "not within" in time_to_quality.table([quick, slow])
    assert slow.as_dict()["passed"][1]["passed"] is None


def test_cost_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {size: Cost(size, 0.1, 1e6) for size in (3, 4)}
    monkeypatch.setattr(sweep, "measured", lambda *_: peaks)
    axis = cost.Axis("task.width", "width", (3, 4), power=2.0)
    found = list(cost.points("coordinate_update_tele.yaml", axis, CPU, batch=1))
    assert [point.row.size for point in found] == [3, 4]
    assert all(point.row.left_out is None and point.step_seconds > 0 for point in found)
    assert all(point.row.peak_bytes == 1e6 for point in found)
    large = replace(found[1], row=replace(found[1].row, size=5, left_out="too large"))
    named = [*found, large]
    assert "left out: too large" in cost.table(named)
    cost.plot(named, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 1000
