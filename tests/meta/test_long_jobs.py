"""Long jobs show themselves: pace, remaining time, traces, and signals that end them in order."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import TINY, assert_one_line, command, rows, run_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metaopt.base.signals import CAUGHT, Signals
from metaopt.meta.pace import RECENT, Pace

CONFIG = "coordinate_update.yaml"


def test_the_rate_is_that_of_the_recent_outer_steps() -> None:
    pace = Pace(total=1000, every=100)
    pace.outer_step(1.0, seconds=100.0)
    assert pace.trajectories_per_second == pytest.approx(0.01)
    for _ in range(RECENT):
        pace.outer_step(6.0, seconds=2.0)
    assert pace.trajectories_per_second == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("outer_step", "steps", "validations"),
    # Of 25 outer steps and validations after 10, 20 and the last.
    [(1, 24, 3), (9, 16, 3), (10, 15, 3), (11, 14, 2), (20, 5, 2), (21, 4, 1), (25, 0, 1)],
)
def test_what_is_left_counts_outer_steps_and_validations(
    outer_step: int, steps: int, validations: int
) -> None:
    pace = Pace(total=25, every=10)
    pace.outer_step(1.0, seconds=2.0)
    assert pace.seconds_left(outer_step) == pytest.approx(2.0 * steps)
    pace.validation(seconds=7.0)
    assert pace.seconds_left(outer_step) == pytest.approx(2.0 * steps + 7.0 * validations)


def test_signals_are_noted_and_handlers_put_back() -> None:
    before = [signal.getsignal(number) for number in CAUGHT]
    with Signals() as signals:
        assert signals.received() == [False, False]
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received() == [False, True]
        # The terminal's and torchrun's, of one press.
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received() == [True, True]
    assert [signal.getsignal(number) for number in CAUGHT] == before


def test_a_second_press_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    with Signals():
        os.kill(os.getpid(), signal.SIGINT)
        later = time.monotonic() + 2
        monkeypatch.setattr("metaopt.base.signals.time.monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def train(folder: Path, outer_steps: int) -> list[str]:
    overrides = [*TINY, f"meta.outer_steps={outer_steps}", "validation.every=1000"]
    return command("train_meta.py", "--config", CONFIG, "--out", str(folder), overrides=overrides)


@pytest.mark.parametrize(
    ("outer_steps", "traced", "words"),
    [
        (6, [4, 5], "profile of outer steps 4 to 5: "),
        (4, [4], "profile of outer steps 4 to 4, where the run ended: "),
        (2, [], "--profile 2: no trace, since the run ended within 3 outer steps of warm-up"),
    ],
)
def test_a_profile_is_a_trace_of_outer_steps(
    outer_steps: int,
    traced: list[int],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    # On a GPU a window is one CUDA graph, which shows kernels and no operators.
    arguments = [*train(folder, outer_steps)[2:], "--profile", "2", "--device", "cpu"]
    assert run_here("train_meta.py", arguments, tmp_path, monkeypatch) == 0
    assert words in capfd.readouterr().out
    found = list(folder.glob("profile/*.pt.trace.json.gz"))
    assert len(found) == bool(traced)
    for path in found:
        assert path.name == f"outer_steps_{traced[0]}_{traced[-1]}.pt.trace.json.gz"
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        names = {event.get("name", "") for event in events}
        # The profiler counts steps from 0; where the run ends, one more had begun.
        steps = {name for name in names if name.startswith("ProfilerStep")}
        expected = {f"ProfilerStep#{step - 1}" for step in traced}
        assert steps - {f"ProfilerStep#{outer_steps}"} == expected
        assert {"aten::bmm", "aten::sigmoid"} <= names


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_a_profile_of_nothing_is_a_mistake(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*train(tmp_path / "run", 1)[2:], f"--profile={value}"]
    assert run_here("train_meta.py", arguments, tmp_path, monkeypatch) == 2
    assert_one_line(capsys.readouterr().err, "--profile", repr(value), "whole number above 0")


def test_pace_is_in_tensorboard_and_the_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run_here("train_meta.py", train(folder, 3)[2:], tmp_path, monkeypatch) == 0
    shown = capsys.readouterr().err
    assert "left=00:0" in shown
    assert "traj/s=" in shown
    events = EventAccumulator(str(folder))
    events.Reload()
    left = [event.value for event in events.Scalars("train/seconds_left")]
    rates = [event.value for event in events.Scalars("train/trajectories_per_second")]
    assert len(left) == len(rates) == 3
    assert left[0] > left[1] > left[2] == 0
    # Windows of 3, 3 and 2 of 8 inner steps, on 4 trajectories: 4 trajectories in all.
    steps = [row for row in rows(folder) if "inner_steps" in row]
    assert 4 / rates[-1] <= steps[-1]["seconds"]


@pytest.mark.slow
def test_sigterm_saves_and_leaves_with_its_own_status(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(train(folder, 5000), stderr=subprocess.PIPE, text=True)
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.02)
    # What the first seconds need to be resumed from is there already.
    assert (folder / "state.pt").is_file()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert f"terminated; --resume goes on from {folder}" in errors
