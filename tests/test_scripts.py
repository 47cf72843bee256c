"""Both scripts as a user runs them: files, contract, mistakes."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from running import (
    TINY,
    TINY_EVAL,
    assert_one_line,
    assert_one_line_mistake,
    rows,
    run,
    run_here,
    run_within,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metaopt
from metaopt.evaluation import overlay
from metaopt.meta import events
from metaopt.meta.validation import validation_score


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs below runs/."""
    folder = tmp_path_factory.mktemp("work")
    for config in ("coordinate_update_tele", "lstm_update"):
        done = run_within("train_meta.py", "--config", f"{config}.yaml", overrides=TINY, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "optimizer.safetensors" in done.stdout
        assert "validation loss" in done.stdout
    return folder


def test_training_writes_what_the_contract_names(trained: Path) -> None:
    folder = trained / "runs" / "coordinate_update_tele"
    names = {path.name for path in folder.iterdir()}
    expected = {"metrics.jsonl", "config.yaml", "optimizer.safetensors", "last.safetensors"}
    assert expected <= names
    steps = [row for row in rows(folder) if "inner_steps" in row]
    assert [row["outer_step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    # Windows of 3, 3 and 2 steps, on 4 trajectories: no tail is dropped.
    assert [row["inner_steps"] for row in steps] == [12, 24, 32, 44, 56, 64]
    assert [row["seconds"] for row in steps] == sorted(row["seconds"] for row in steps)
    for row in steps:
        assert row["world_size"] == 1
        assert row["local_trajectories"] == 4
        assert row["skipped"] == 0
        assert 0 <= row["validation_seconds"] < row["seconds"]
    validations = [row for row in rows(folder) if "val_loss_geomean" in row]
    assert [row["outer_step"] for row in validations] == [2, 4, 6]
    assert all(len(row["val_loss_geomean"]) == 9 for row in validations)
    rule = metaopt.load(folder / "optimizer.safetensors")
    assert rule.name == "coordinate LSTM(update,tele)"
    curves = [row["val_loss_geomean"] for row in validations]
    best = min(curves, key=lambda curve: validation_score(curve, rule.config.meta.epsilon))
    assert rule.validation["val_loss_geomean"] == best


def charts(layout: dict[str, dict[str, list[Any]]]) -> list[list[str]]:
    """The tags, or patterns of tags, of each chart of a layout."""
    return [tags for category in layout.values() for _, tags in category.values()]


def test_no_chart_of_the_training_layout_is_empty(trained: Path) -> None:
    found = EventAccumulator(str(trained / "runs" / "coordinate_update_tele"))
    found.Reload()
    tags = found.Tags()["scalars"]
    for patterns in charts(events.TRAINING):
        # As TensorBoard does: from the beginning of the tag.
        assert all(any(re.match(pattern, tag) for tag in tags) for pattern in patterns)
    before, after = (
        found.Scalars(f"validation/{name}_0008") for name in ("loss_at", "log10_loss_at")
    )
    assert [e.value for e in after] == pytest.approx([math.log10(e.value) for e in before])
    assert "validation/log10_loss_at_0000" not in tags


def test_the_table_of_runs_has_the_columns_of_all(trained: Path) -> None:
    found = EventAccumulator(str(trained / "runs" / "coordinate_update_tele"))
    found.Reload()
    assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(
        found.summary_metadata
    )
    # It would say which columns there are, and TensorBoard takes that of the first run for all.
    assert "_hparams_/experiment" not in found.summary_metadata
    last = rows(trained / "runs" / "coordinate_update_tele")[-1]
    (shown,) = found.Scalars("final/validation_loss")
    assert shown.step == last["outer_step"] == 6
    assert shown.value == pytest.approx(last["val_loss_geomean"][-1])
    assert min(found.Tags()["scalars"]) == "final/validation_loss"


def test_tensorboard_shows_gradient_norms_not_weight_norms(trained: Path) -> None:
    found = EventAccumulator(str(trained / "runs" / "coordinate_update_tele"))
    found.Reload()
    tags = set(found.Tags()["scalars"])
    assert {"train/meta_loss", "train/skipped", "grad_norm/update", "grad_norm/teleport"} <= tags
    assert {"teleport/norm_mean", "teleport/drift_max", "validation/loss_at_0008"} <= tags
    assert found.Tags()["histograms"]
    assert "custom_scalars__config__" in found.summary_metadata
    logged = [event.value for event in found.Scalars("train/meta_loss")]
    folder = trained / "runs" / "coordinate_update_tele"
    written = [row["meta_loss"] for row in rows(folder) if "inner_steps" in row]
    assert logged == pytest.approx(written, rel=1e-6)


def test_evaluation_follows_the_contract(trained: Path) -> None:
    done = run("eval_meta.py", overrides=TINY_EVAL, cwd=trained)
    assert done.returncode == 0, done.stderr
    folder = trained / "runs" / "eval"
    found = json.loads((folder / "results.json").read_text())
    assert (found["tasks"], found["steps"], found["task_seed"]) == (8, 22, 0)
    *learned, first, second, third = found["optimizers"]
    assert [first, second, third] == ["GD", "Adam@20", "L-BFGS"]
    paths = [Path(found["optimizers"][name]["origin"]["checkpoint"]) for name in learned]
    # The shipped ones that fit these shapes, and then what was trained here.
    shipped = [path.stem for path in paths if path.parent.name == "pretrained"]
    coordinate = ["coordinate_lr_tele", "coordinate_update", "coordinate_update_tele"]
    updates = ["factorised_update", "general_update", "lora_update"]
    assert shipped == ["attention_update", *coordinate, "digits_update_tele", *updates]
    assert [path.parent.name for path in paths[8:]] == ["coordinate_update_tele", "lstm_update"]
    for name, entry in found["optimizers"].items():
        assert entry["kind"] == ("learned" if name in learned else "baseline")
        assert entry["gradients_per_step"] == 1.0
        for field in ("loss_mean", "loss_geomean", "loss_q05", "loss_q95"):
            assert len(entry[field]) == 23
        assert (entry["teleport"] is not None) == ("tele" in name)
        assert entry["seconds_per_step"] > 0
    first = {round(entry["loss_geomean"][0], 6) for entry in found["optimizers"].values()}
    assert len(first) == 1
    teleport = found["optimizers"][learned[1]]["teleport"]
    assert set(teleport) == {"norm_mean", "refused_share", "drift_max", "drift_log_total_mean"}
    pairs = {(pair["a"], pair["b"], pair["step"]): pair for pair in found["pairs"]}
    compared = len(found["optimizers"])
    assert len(pairs) == compared * (compared - 1) * len((1, 10, 20, 22))
    for (a, b, step), pair in pairs.items():
        losses = [found["optimizers"][name]["loss_geomean"][step] for name in (a, b)]
        assert pair["ratio"] == pytest.approx(losses[0] / losses[1], rel=1e-9)
        assert pair["ci95"][0] <= pair["ratio"] <= pair["ci95"][1]
        assert pair["win_rate"] + pairs[b, a, step]["win_rate"] <= 1
    lbfgs = found["optimizers"]["L-BFGS"]["loss_geomean"]
    assert lbfgs == sorted(lbfgs, reverse=True)
    for name in ("curves.csv", "convergence.png"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "convergence.png").read_bytes()[:4] == b"\x89PNG"
    for name, entry in found["optimizers"].items():
        shown = EventAccumulator(str(folder / "tensorboard" / run_name(name, entry)))
        shown.Reload()
        assert len(shown.Scalars("loss/geomean")) == 23
        # TensorBoard opens with what comes first in the alphabet.
        assert min(shown.Tags()["scalars"]) == "comparison/log10_loss"
        assert {tag for tags in charts(overlay.COMPARISON) for tag in tags} <= {
            *shown.Tags()["scalars"]
        }
        seconds = found["optimizers"][name]["seconds_per_step"]
        by_time = [event.step for event in shown.Scalars("comparison/log10_loss_by_microsecond")]
        assert by_time == [round(1e6 * seconds * step) for step in range(23)]
    together = EventAccumulator(str(folder / "tensorboard"))
    together.Reload()
    assert together.Tags()["images"] == ["convergence"]
    assert "custom_scalars__config__" in together.summary_metadata
    table = [[c.strip() for c in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    places = {cells[0]: cells[-1] for cells in table if len(cells) > 6 and cells[0].strip("-")}
    assert places.pop("optimizer") == "from"
    assert places == {
        name: entry["origin"].get("from", "baseline") for name, entry in found["optimizers"].items()
    }
    assert [places[name] for name in learned] == [
        *["shipped"] * 8,
        "runs/coordinate_update_tele",
        "runs/lstm_update",
    ]


def run_name(name: str, entry: dict[str, Any]) -> str:
    """What TensorBoard calls an optimizer: with where it comes from, the user's own first."""
    if (place := entry["origin"].get("from")) is None:
        return name
    told = f"{re.sub(r' .(pretrained|runs)/.*', '', name)}, {place}"
    return told if place == "shipped" else f"+ {told}"


def test_equal_names_get_their_places_and_wrong_shapes_are_left_out(trained: Path) -> None:
    other = trained / "other"
    done = run_within(
        "train_meta.py",
        "--config",
        "lstm_update.yaml",
        "--out",
        str(other),
        overrides=[*TINY, "seed=3"],
        cwd=trained,
    )
    assert done.returncode == 0, done.stderr
    paths = [
        str(path)
        for path in (
            trained / "runs" / "lstm_update" / "optimizer.safetensors",
            other / "optimizer.safetensors",
            trained / "runs" / "coordinate_update_tele" / "optimizer.safetensors",
        )
    ]
    options = ["--checkpoints", *paths, "--out", str(trained / "e")]
    done = run_within(
        "eval_meta.py", *options, overrides=[*TINY_EVAL, "baselines=[GD]", "steps=3"], cwd=trained
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((trained / "e" / "results.json").read_text())
    learned = [name for name, entry in found["optimizers"].items() if entry["kind"] == "learned"]
    assert learned == [
        "LSTM(update) (lstm_update)",
        "LSTM(update) (other)",
        "coordinate LSTM(update,tele)",
    ]
    wider = [*TINY_EVAL, "baselines=[]", "steps=3", "task.width=5"]
    done = run_within("eval_meta.py", *options, overrides=wider, cwd=trained)
    assert done.returncode == 0, done.stderr
    found = json.loads((trained / "e" / "results.json").read_text())
    assert list(found["optimizers"]) == ["coordinate LSTM(update,tele)"]
    assert "left out: LSTM(update) (other)" in done.stdout + done.stderr


def test_resume_without_a_state_starts_afresh_and_says_so(tmp_path: Path) -> None:
    options = ["train_meta.py", "--config", "lstm_update.yaml", "--out", str(tmp_path / "r")]
    short = [*TINY, "meta.outer_steps=1"]
    done = run_within(*options, "--resume", overrides=short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "starting afresh" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "lstm_update_tele.yaml"]),
        (["--config", "lstm_update.yaml", "--set", "meta.bacth=3"], ["meta.bacth", "batch"]),
        (["--config", "lstm_update.yaml", "--set", "meta.batch=many"], ["meta.batch", "many"]),
        (["--config", "lstm_update.yaml", "--set", "meta.batch=0"], ["meta.batch", "0"]),
        (["--config", "lstm_update.yaml", "--set", "meta.unroll=0"], ["meta.unroll", "0"]),
        (["--config", "lstm_update_tele.yaml", "--set", "task.samples=21"], ["21", "inexact"]),
        (["--config", "lstm_update.yaml", "--device", "cuda:99"], ["cuda:99"]),
        (["--config", "lstm_update.yaml", "--device", "tpu"], ["tpu"]),
        (["--config", "lstm_update.yaml", "--frobnicate"], ["frobnicate"]),
        ([], ["--config"]),
    ],
)
def test_mistakes_in_training_end_in_one_line(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_here("train_meta.py", arguments, tmp_path, monkeypatch) == 2
    assert_one_line(capsys.readouterr().err, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "baselines=[Adamm]"], ["Adamm", "L-BFGS"]),
        (["--checkpoints", "no.safetensors"], ["no.safetensors"]),
    ],
)
def test_mistakes_in_evaluation_end_in_one_line(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_here("eval_meta.py", arguments, tmp_path, monkeypatch) == 2
    assert_one_line(capsys.readouterr().err, *words)


def test_baselines_tuned_beyond_the_horizon_are_left_out_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["baselines=[GD,Adam@20]", "steps=1", "tasks=4", "bootstrap=10", "tuning.tasks=2"]
    arguments = [part for value in sets for part in ("--set", value)]
    assert run_here("eval_meta.py", arguments, tmp_path, monkeypatch) == 0
    assert "left out: Adam@20" in capsys.readouterr().out
    found = json.loads((tmp_path / "runs" / "eval" / "results.json").read_text())
    kinds = {name: entry["kind"] for name, entry in found["optimizers"].items()}
    assert [name for name, kind in kinds.items() if kind == "baseline"] == ["GD"]


def test_a_damaged_checkpoint_ends_in_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(os.urandom(100))
    done = run_within("eval_meta.py", "--checkpoints", str(damaged), cwd=tmp_path)
    assert_one_line_mistake(done, "damaged.safetensors")
