"""``metaopt show``: what is said of a checkpoint, and what is no figure."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from places import PRETRAINED
from saved_rules import UNSEEN, learned, with_figures
from support import UPDATE, tiny_config

import metaopt
from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.meta.build import meta_optimizer
from metaopt.optim import show
from metaopt.optim.learned import LearnedRule
from metaopt.tasks.config import TaskConfig

SHIPPED = sorted(PRETRAINED.glob("*.safetensors"))


def run_show(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["show.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run(show.main)
    return ended.value.code


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_ships_is_described(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_show(str(path), monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    rule = metaopt.load(path)
    count = sum(parameter.numel() for parameter in rule.optimizer.parameters())
    figures = next(iter(rule.validation["test"].values()))
    at_20 = figures["loss_geomean_above_least"]["20"]["geomean"]
    for wanted in (
        rule.name,
        "MIT",
        f"{count:,} numbers",
        f"seed {rule.config.seed}",
        rule.training["command"],
        rule.training["commit"],
        f"{rule.validation['val_loss_geomean'][20]:.3g}",
        f"{at_20:.3g}",
        f"of {figures['tasks']} tasks",
    ):
        assert wanted in out
    for name, tensor in rule.optimizer.state_dict().items():
        assert any(name in line and str([*tensor.shape]) in line for line in out.splitlines())


def test_folders_are_described_as_their_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(with_figures(), licence="Apache-2.0").save_pretrained(tmp_path)
    described = []
    for source in (tmp_path, tmp_path / "model.safetensors"):
        assert run_show(str(source), monkeypatch=monkeypatch) == 0
        described.append(capsys.readouterr().out)
    assert described[0] == described[1]
    assert "Apache-2.0" in described[0]
    assert "narrow (width 10)" in described[0]


def test_of_a_users_family_its_name_and_options_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = learned("update alone")
    task = TaskConfig(family="never.imported:Here", options={"width": 3})
    config = tiny_config({"update": UPDATE}).model_copy(update={"task": task})
    LearnedRule(meta_optimizer(config), config, rule.training).save(tmp_path / "a")
    assert run_show(str(tmp_path / "a"), monkeypatch=monkeypatch) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "never.imported" in line)
    assert row.split(maxsplit=1) == ["tasks", "family never.imported:Here, options {'width': 3}"]


def test_control_characters_never_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "\x1b[31mred\x07\nnew line"
    rule = with_figures()
    training = {"command": odd, "commit": odd, odd: odd}
    config = rule.config.model_copy(update={"label": odd})
    unseen = {odd: UNSEEN | {"task": {odd: odd}, "teleport": {odd: 1.0}}}
    validation = rule.validation | {"test": unseen}
    LearnedRule(rule.optimizer, config, training, validation).save(tmp_path / "odd.safetensors")
    assert run_show(str(tmp_path / "odd.safetensors"), monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "red" in out
    assert all(line.isprintable() for line in out.split("\n"))
    assert not any(line.startswith("new line") for line in out.split("\n"))


def _with_validation(**validation: Any) -> LearnedRule:
    return replace(learned(), validation=validation)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (_with_validation(val_loss_geomean="low"), ["validation", "val_loss_geomean", "low"]),
        (_with_validation(test={"default": {}}), ["validation", "test.default.tasks", "missing"]),
        (_with_validation(test=[1]), ["validation", "test"]),
    ],
    ids=["curve", "family", "list"],
)
def test_figures_that_are_none_end_in_one_line(
    rule: LearnedRule,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "rule.safetensors"
    rule.save(path)
    assert run_show(str(path), monkeypatch=monkeypatch) == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    for word in (str(path), *words):
        assert word in told
    assert metaopt.load(path).validation == rule.validation
    with pytest.raises(UserError):
        rule.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("arguments", [[], ["nowhere.safetensors"], ["--frobnicate", "x"]])
def test_mistakes_in_inspection_end_in_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_show(*arguments, monkeypatch=monkeypatch) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
