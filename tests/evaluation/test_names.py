"""Names of optimizers: told apart, shown as text, and folders that never collide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from running import TINY, assert_one_line, run_here
from support import tiny_config

from metaopt.base.fields import LONGEST_LABEL
from metaopt.evaluation.contenders import Contender, captions, told_apart
from metaopt.evaluation.overlay import run_folders
from metaopt.meta.build import meta_optimizer
from metaopt.optim.learned import LearnedRule
from metaopt.rules.baselines import hand_made


def contender(name: str, path: str | None = None) -> Contender:
    optimizer = hand_made("GD", {"lr": 0.1}, 1)
    if path is None:
        return Contender(name, "baseline", optimizer, {})
    return Contender(name, "learned", optimizer, {"checkpoint": path})


def names(*given: tuple[str, str | None]) -> list[str]:
    return [found.name for found in told_apart([contender(*one) for one in given])]


SHIPPED = "/home/me/checkpoints/pretrained/lstm.safetensors"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([("A", SHIPPED), ("B", "runs/b/optimizer.safetensors")], ["A", "B"]),
        (
            [("A", SHIPPED), ("A", "/home/me/runs/lstm/optimizer.safetensors")],
            ["A (pretrained/lstm)", "A (runs/lstm)"],
        ),
        (
            [("A", "x/a/optimizer.safetensors"), ("A", "y/b/optimizer.safetensors")],
            ["A (a)", "A (b)"],
        ),
        (
            [("A", "a/optimizer.safetensors"), ("A", "a/last.safetensors")],
            ["A (a)", "A (last)"],
        ),
        ([("A", "/a.safetensors"), ("A", "/a/model.safetensors")], ["A (a.safetensors)", ""]),
        ([("Adam", "/r/mine.safetensors"), ("Adam", None)], ["Adam (mine)", "Adam"]),
        ([("A", "/1"), ("A", "/2"), ("A (1)", "/3")], ["A (1)", "A (2)", "A (1) (3)"]),
        ([("GD", None), ("GD", None), ("GD (2)", "/x")], ["GD", "GD (2)", "GD (2) (x)"]),
    ],
)
def test_two_of_a_name_are_told_apart_by_where_they_come_from(
    given: Sequence[tuple[str, str | None]], wanted: list[str]
) -> None:
    found = names(*given)
    assert len(set(found)) == len(given)
    for name, want in zip(found, wanted, strict=True):
        assert name == (want or name)


def test_a_file_that_is_there_twice_is_numbered() -> None:
    found = names(("A", "/r/a"), ("A", "/r/a"), ("A", "/r/b"))
    assert len(set(found)) == 3
    assert found[2] == "A (b)"


def test_pictures_say_where_a_learned_one_comes_from_and_never_say_one_thing_twice() -> None:
    def of(label: str, place: str, path: str) -> Contender:
        origin = {"checkpoint": path, "from": place}
        return replace(contender(label, path), origin=origin, label=label)

    given = [of("A", "shipped", "/p/a"), of("A", "runs/a", "/runs/a"), of("B", "shipped", "/p/b")]
    assert captions(told_apart([*given, contender("GD")])) == [
        "A, shipped",
        "A, runs/a",
        "B, shipped",
        "GD",
    ]
    alike = captions(told_apart([*given, of("A", "shipped", "/p/c")]))
    assert alike == ["A (p/a), shipped", "A, runs/a", "B, shipped", "A (c), shipped"]


def test_folders_are_like_the_names_and_never_the_same() -> None:
    plain = ["LSTM(update,tele)", "Adam@20", "L-BFGS", "A (runs/v1.0)"]
    assert run_folders(plain) == plain
    odd = ["a.b", "a/b", "a_b", "A_B", "..", "../..", "", " ", "\0", "\n", "é", "e\u0301", "🚀"]
    odd += ["x" * 300, "x" * 299 + "y", "\U00010348" * 300, "a_b 2", "CON"]
    found = run_folders(odd)
    assert len({name.casefold() for name in found}) == len(odd)
    for name in found:
        assert not set(name) & set("\\\0\n")
        for part in name.split("/"):
            assert 0 < len(part.encode()) < 256
            assert part.strip(".")


@pytest.mark.parametrize(
    "label", ["", " ", " a", "a\n", "a\0", "\x1b[31mred", "x" * (LONGEST_LABEL + 1), "a\u200b"]
)
def test_a_label_that_cannot_stand_in_a_table_is_refused(
    label: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = [*TINY, f"label={label}"]
    arguments = ["--config", "coordinate_update.yaml", *(p for s in sets for p in ("--set", s))]
    assert run_here("train_meta.py", arguments, tmp_path, monkeypatch) == 2
    assert_one_line(capsys.readouterr().err, "label")
    assert not (tmp_path / "runs").exists()


def test_rules_of_any_label_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [
        "v1.0",
        "v1/0",
        "x" * 300,
        "$a",
        "a|b",
        "\x1b[31m",
        "..",
        " ",
        "🚀",
        "Adam",
        "../../x",
    ]
    for i, label in enumerate(labels):
        config = tiny_config().model_copy(update={"label": label})
        LearnedRule(meta_optimizer(config), config).save(tmp_path / f"{i}.safetensors")
    paths = [str(tmp_path / f"{i}.safetensors") for i in range(len(labels))]
    grids = "tuning.grids={Adam: {lr: [0.1], beta1: [0.9], beta2: [0.9]}}"
    sets = ["tasks=2", "steps=2", "tuning.tasks=2", "bootstrap=5", "baselines=[Adam]", grids]
    sets += ["task={width: 3, inputs: 3, outputs: 3, samples: 3}"]
    arguments = ["--checkpoints", *paths, *(p for s in sets for p in ("--set", s))]
    assert run_here("eval_meta.py", arguments, tmp_path, monkeypatch) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    found = json.loads((tmp_path / "runs/eval/results.json").read_text())["optimizers"]
    assert found["Adam"]["kind"] == "baseline"
    assert found["Adam (9)"]["kind"] == "learned"
    assert len(found) == len(labels) + 1
    shown = tmp_path / "runs/eval/tensorboard"
    files = list(shown.rglob("events.out.tfevents.*"))
    assert len({path.parent for path in files} - {shown}) == len(labels) + 1
    assert not (tmp_path / "x").exists()
    assert torch.isfinite(torch.tensor(found["v1.0"]["loss_geomean"])).all()
