"""The hardening command in tiny sizes, and what it found once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from support import UPDATE_AND_TELEPORT, tiny_config

from benchmarks.hardening import damage
from benchmarks.hardening.saboteur import Saboteur
from metaopt.base import files
from metaopt.base.checkpoint import CheckpointError, read_state, write_state
from metaopt.base.config import ConfigError, load
from metaopt.base.errors import WriteError, shown
from metaopt.base.process import World
from metaopt.evaluation import tuning
from metaopt.evaluation.config import EvalConfig
from metaopt.meta import events
from metaopt.meta.config import TrainConfig
from metaopt.meta.run import Run
from metaopt.rules.build import hand_made

CPU = torch.device("cpu")
NO_ROOM = OSError(28, "No space left on device")


def test_nothing_falls_short_in_tiny_sizes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hardening", "--smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    for wanted in ("kills 2/2", "disk 5/5 lost 0", "tracebacks 0, code run 0"):
        assert wanted in last


# What is sabotaged happens.


def test_a_saboteur_acts_in_the_middle_of_each_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in (("os", "replace"), ("os", "fsync"), ("os", "fdopen"), ("io", "open")):
        monkeypatch.setattr(f"{module}.{name}", getattr(sys.modules[module], name))
    seen: list[list[bytes]] = []
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def look() -> None:
        seen.append([path.read_bytes() for path in sorted(tmp_path.iterdir())])

    saboteur = Saboteur(0, look)
    saboteur.install()
    files.write_atomically(target, b"new one")
    for at in range(1, saboteur.count + 1):
        saboteur._left, saboteur.count = at, 0
        files.write_atomically(target, b"new one" if at % 2 else b"another")
    assert [b"new", b"new one"] in seen or [b"ano", b"new one"] in seen
    # Under its own name it is whole at every moment.
    assert all(found[-1] in (b"new one", b"another") for found in seen)


def test_damage_is_of_the_seed_alone_and_leaves_the_whole_alone() -> None:
    whole = {"a": [1, 2, {"b": "c"}], "d": 0.5}
    kept = json.dumps(whole)
    found = [damage.of_data(whole, random.Random(i)) for i in range(200)]
    again = [damage.of_data(whole, random.Random(i)) for i in range(200)]
    assert [shown(one, 500) for one in found] == [shown(one, 500) for one in again]
    assert json.dumps(whole) == kept
    assert len({shown(one, 500) for one in found}) > 50


# Writing.


@pytest.mark.parametrize("at", range(1, 12))
def test_a_run_without_room_ends_in_a_line_and_resumes(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(UPDATE_AND_TELEPORT, {})
    Run(config, tmp_path / "whole", CPU, 0.0, World()).execute(False)
    calls = [0]
    sync = os.fsync

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] >= at:
            raise NO_ROOM
        sync(descriptor)

    own = tmp_path / "own"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WriteError) as caught:
            Run(config, own, CPU, 0.0, World()).execute(False)
    line = str(caught.value)
    assert str(own) in line
    assert "cannot be written: No space left on device; " in line
    assert ("--resume goes on" in line) == (own / "state.pt").is_file()
    assert not list(own.glob(".*"))
    Run(config, own, CPU, 0.0, World()).execute(True)
    for name in ("optimizer.safetensors", "last.safetensors"):
        assert (own / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_files_that_go_together_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in "abc"]
    files.write_together(dict.fromkeys(paths, b"old"))
    sync, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise NO_ROOM
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="c: cannot be written: No space left"):
        files.write_together(dict.fromkeys(paths, b"new"))
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"old"] * 3


def _written(writer: events.RunWriter) -> None:
    writer.outer_step(1, {"x": 1.0})
    writer.flush()


def test_events_that_cannot_be_written_are_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    writer = events.RunWriter(folder, 1, {})
    writer.flush()
    for file in events.RunWriter.files(folder):
        file.unlink()
    folder.rmdir()
    with pytest.raises(WriteError, match=r"run: cannot be written: No such file"):
        _written(writer)
    assert "Traceback" not in capfd.readouterr().err


# Reading.


def _stopped(folder: Path) -> TrainConfig:
    config = tiny_config(UPDATE_AND_TELEPORT, {})
    run = Run(config, folder, CPU, 0.0, World())
    run.execute(False)
    run.trainer.progress.outer_step = 3
    write_state(folder / "state.pt", run.trainer.state())
    return config


def _set(path: str, value: Any) -> Any:
    *parents, last = path.split(".")

    def change(state: Any) -> None:
        for key in parents:
            state = state[int(key) if key.isdigit() else key]
        state[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_set("progress.outer_step", -(10**18)), "progress.outer_step"),
        (_set("progress.drawn", 0), "progress.drawn"),
        (_set("progress.seconds", float("nan")), "progress.seconds"),
        (_set("progress.skipped", "1"), "progress.skipped"),
        (_set("phi", torch.zeros(3)), "phi"),
        (_set("adam.state", [1]), "not a state of this run"),
        (_set("adam", None), "not a state of this run"),
        (_set("average", {"updates": 1}), "average"),
        (_set("windows", None), "windows"),
        (_set("inner", 7), "not a state of this run"),
        (_set("inner.parts", []), "inner.parts"),
        (_set("inner.parts.0.count", 10**6), "inner.parts"),
        (_set("inner.parts.0.weights", ()), "inner.parts[0].weights"),
        (_set("inner.windows_left", [-1]), "inner.windows_left"),
        (_set("config", None), "not a state of this run"),
        (_set("config.meta.outer_steps", 0), "not a state of this run"),
        (_set("config.meta.outer_steps", [3]), "not a state of this run"),
        (_set("config.meta.outer_steps", "3"), "not a state of this run"),
        (_set("config.name", torch.zeros(2)), "not a state of this run"),
        (_set("families", {"task.family": {"x": torch.zeros(0)}}), "not a state of this run"),
        (_set("progress.outer_step", torch.zeros(2)), "not a state of this run"),
    ],
)
def test_a_state_that_does_not_fit_is_told_in_one_line(
    change: Any, named: str, tmp_path: Path
) -> None:
    config = _stopped(tmp_path)
    state = read_state(tmp_path / "state.pt")
    change(state)
    write_state(tmp_path / "state.pt", state)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        Run(config, tmp_path, CPU, 0.0, World()).execute(True)
    line = str(caught.value)
    assert named in line
    assert "state.pt" in line
    assert "\n" not in line
    assert len(line) < 400


def test_rows_that_are_no_metrics_are_left_out_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, path = _stopped(tmp_path), tmp_path / "metrics.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    junk = [b"\xff\xfe\n", b"[1]\n", b'{"outer_step": "2"}\n', b"[" * 100_000 + b"\n", b"{}\n"]
    path.write_bytes(b"".join([first, *junk, *rest, b'{"outer_step": 3']))
    Run(config, tmp_path, CPU, 0.0, World()).execute(True)
    said = capsys.readouterr().out
    assert f"{path}: 5 lines are damaged and left out" in said
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["outer_step"] for row in rows if "inner_steps" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "entry", [None, 7, {}, {"values": {"lr": 5.0}, "validation_loss": 1.0}, {"values": [1]}]
)
def test_a_tuned_value_that_is_none_is_tuned_again(entry: Any, tmp_path: Path) -> None:
    sizes = ("width=3", "inputs=4", "outputs=2", "samples=3")
    given = [f"task.{size}" for size in sizes]
    given += ["steps=2", "tuning.tasks=2", "baselines=[GD]", "tuning.grids={GD: {lr: [1e-3]}}"]
    config, cache = load(EvalConfig, "eval.yaml", given), tmp_path / "cache.json"
    wanted = tuning.tune(config, CPU, cache, World())
    (key,) = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: entry}))
    assert tuning.tune(config, CPU, cache, World()) == wanted
    assert hand_made("GD", wanted[0].values, 2) is not None


@pytest.mark.parametrize(
    "override",
    [f"task.outputs{'.' * 500}=1", "task.slope=a\nb: c", f"name{'.a' * 3000}=1", f"x{'y' * 900}"],
)
def test_overrides_are_told_in_a_short_line(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, "coordinate_update.yaml", [override])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_values_are_shown_in_bounded_space() -> None:
    deep: Any = "x"
    for _ in range(30):
        deep = [deep] * 9
    assert len(shown(deep)) <= 60
    assert shown(10**5000).startswith("a whole number of 16610 bits")
    assert shown({"a": 1}) == "{'a': 1}"
