"""The hardening command in tiny sizes, and what it found once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT
from support import UPDATE_AND_TELEPORT, tiny_config

from benchmarks.hardening import damage
from benchmarks.hardening.saboteur import Saboteur
from metaopt.base import files
from metaopt.base.errors import WriteError, shown
from metaopt.base.process import World
from metaopt.meta import events
from metaopt.meta.run import Run

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
