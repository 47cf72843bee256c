"""What a run is resumed from: states that do not fit, and rows that are no metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import UPDATE_AND_TELEPORT, tiny_config

from metaopt.base.checkpoint import CheckpointError, read_state, write_state
from metaopt.base.config import ConfigError
from metaopt.base.process import World
from metaopt.meta.config import TrainConfig
from metaopt.meta.run import Run

CPU = torch.device("cpu")


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
