"""A command that is given again: nothing is lost, runs go on, states of others are told."""

from __future__ import annotations

import copy
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import TINY, assert_one_line, rows, run_here, without_times

import metaopt
from metaopt.base import checkpoint
from metaopt.meta.trainer import MetaTrainer

Train = Callable[..., object]
FILES = ["config.yaml", "last.safetensors", "metrics.jsonl", "optimizer.safetensors", "state.pt"]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs ``train_meta.py`` into ``folder`` for ``outer_steps``; the exit status."""

    def started(*more: str, folder: str = "r", outer_steps: int = 2, sets: Any = ()) -> object:
        both = [*TINY, f"meta.outer_steps={outer_steps}", *sets]
        given = ["--config", "coordinate_update.yaml", "--out", folder, *more]
        given += [part for value in both for part in ("--set", value)]
        return run_here("train_meta.py", given, tmp_path, monkeypatch)

    return started


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_same_command_again_loses_nothing(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    kept: list[dict[str, bytes]] = []
    for again in range(3):
        assert train() == 0
        told = capsys.readouterr().out
        assert ("is kept in" in told) == (again > 0)
        assert again == 0 or f"before-{again}" in told
        kept.append(contents(folder))
        assert set(FILES) | {"notes.txt"} <= kept[-1].keys()
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    for earlier, number in zip(kept, (1, 2), strict=False):
        earlier.pop("notes.txt")
        assert contents(folder / f"before-{number}") == earlier
    # What eval_meta.py looks for by itself.
    assert [*tmp_path.glob("*/optimizer.safetensors")] == [folder / "optimizer.safetensors"]
    assert metaopt.load(folder / "before-1/optimizer.safetensors").training["outer_step"] == 2


def test_a_resumption_without_a_state_keeps_what_is_there(train: Train, tmp_path: Path) -> None:
    assert train() == 0
    (tmp_path / "r/state.pt").unlink()
    earlier = contents(tmp_path / "r")
    assert train("--resume") == 0
    assert contents(tmp_path / "r/before-1") == earlier


def test_training_goes_on_for_more_outer_steps(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["meta.schedule=constant"]
    assert train(folder="whole", outer_steps=8, sets=same) == 0
    assert train(folder="parts", outer_steps=4, sets=same) == 0
    capsys.readouterr()
    assert train("--resume", folder="parts", outer_steps=8, sets=same) == 0
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "--resume" in line]
    assert "8 outer steps, where the run was started with 4" in told
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert without_times(parts) == without_times(whole)
    assert {"resumed_from": 4} in rows(parts)
    for name in ("optimizer.safetensors", "last.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert yaml.safe_load((parts / "config.yaml").read_text())["meta"]["outer_steps"] == 8
    # It is a run of 8 from now on.
    assert train("--resume", folder="parts", outer_steps=8, sets=same) == 0


def test_with_a_cosine_it_says_how_the_rates_go_on(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(outer_steps=4) == 0
    assert train("--resume", outer_steps=8) == 0
    assert "outer learning rates are 0.51 of the largest, and were 0.164" in capsys.readouterr().out
    assert rows(tmp_path / "r")[-1]["outer_step"] == 8


@pytest.mark.parametrize(("outer_steps", "sets"), [(2, []), (3, []), (8, ["seed=4"])])
def test_what_does_not_fit_a_run_is_told(
    outer_steps: int,
    sets: list[str],
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(outer_steps=4) == 0
    earlier = contents(tmp_path / "r")
    capsys.readouterr()
    assert train("--resume", outer_steps=outer_steps, sets=sets) == 2
    assert_one_line(capsys.readouterr().err, "state.pt", "seed" if sets else "meta.outer_steps")
    assert contents(tmp_path / "r") == earlier


def test_two_processes_never_train_in_one_folder(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    earlier = contents(tmp_path / "r")
    held = os.open(tmp_path / "r", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    capsys.readouterr()
    assert train() == 2
    assert_one_line(capsys.readouterr().err, str(Path("r")), "another process")
    os.close(held)
    assert contents(tmp_path / "r") == earlier
    assert train() == 0


def _other(state: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(state)
    node = changed
    for part in path[:-1]:
        node = node[part]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return changed


DAMAGES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "no phi": (("phi",), None),
    "no progress": (("progress",), None),
    "progress of another kind": (("progress",), [1]),
    "text for a number": (("progress", "outer_step"), "two"),
    "unknown progress": (("progress", "speed"), 3),
    "phi of another shape": (("phi", "networks.update.head.bias"), torch.zeros(77)),
    "phi of another dtype": (("phi", "networks.update.head.bias"), torch.zeros(1).double()),
    "a list for phi": (("phi",), []),
    "adam of others": (("adam", "param_groups"), []),
    "adam of another shape": (("adam", "state", 0, "exp_avg"), torch.zeros(3)),
    "adam without a mean": (("adam", "state", 0, "exp_avg"), None),
    "weights of another shape": (("inner", "parts", 0, "weights"), (torch.zeros(1),)),
    "no parts": (("inner", "parts"), []),
    "more trajectories": (("inner", "parts", 0, "count"), 9),
    "rules unknown": (("inner", "parts", 0, "optimizer"), {"x.y": torch.zeros(1)}),
    "no windows": (("windows",), {"taken": 1}),
    "a config that is none": (("config",), 5),
    "begun by metaopt 0.2": (("config", "products"), "full"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_states_that_are_not_of_the_run_are_told_in_one_line(
    damage: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(outer_steps=1, sets=["validation.tasks=1"]) == 0
    path, value = DAMAGES[damage]
    file = tmp_path / "r/state.pt"
    state = checkpoint.read_state(file)
    assert json.dumps(state["config"])
    parent: Any = state
    for part in path[:-1]:
        parent = parent[part]
    assert value is not None or path[-1] in parent
    checkpoint.write_state(file, _other(state, *path, value=value))
    capsys.readouterr()
    assert train("--resume", outer_steps=3, sets=["validation.tasks=1"]) == 2
    assert_one_line(capsys.readouterr().err, "state.pt")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("x")])
def test_short_memory_is_no_misfit(
    error: Exception,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train() == 0

    def short(*_: Any) -> None:
        raise error

    monkeypatch.setattr(MetaTrainer, "restore", short)
    capsys.readouterr()
    assert train("--resume", outer_steps=3) == 1
    assert_one_line(capsys.readouterr().err, "out of memory")


def test_damaged_metrics_are_left_out_with_a_line(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(outer_steps=4) == 0
    file = tmp_path / "r/metrics.jsonl"
    first, second, *rest = file.read_bytes().splitlines()
    odd = [b"\xff\xfe", b'"text"', b"[1]", b'{"outer_step": "two"}', b"[" * 100_000]
    file.write_bytes(b"\n".join([first, *odd, second, *rest, b'{"outer_st']))
    capsys.readouterr()
    assert train("--resume", outer_steps=6) == 0
    assert "5 lines are damaged" in capsys.readouterr().out
    found = [row["outer_step"] for row in rows(tmp_path / "r") if "inner_steps" in row]
    assert found == [1, 2, 3, 4, 5, 6]
