"""Sharing: folders in the layout of Hugging Face, and the hub only when it is meant."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from saved_rules import RULES, learned, proposed, with_figures

import metaopt
from metaopt.base.checkpoint import CheckpointError
from metaopt.base.errors import UserError
from metaopt.optim.learned import LearnedRule


def assert_same(one: LearnedRule, other: LearnedRule) -> None:
    assert one.config == other.config
    assert one.training == other.training
    assert one.validation == other.validation
    assert one.licence == other.licence
    for mine, theirs in zip(proposed(one), proposed(other), strict=True):
        assert torch.equal(mine, theirs)


def one_line(error: pytest.ExceptionInfo[UserError], *words: str) -> str:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# Folders.


@pytest.mark.parametrize("kind", list(RULES))
def test_a_folder_gives_the_rule_back(kind: str, tmp_path: Path) -> None:
    saved = replace(learned(kind), licence="Apache-2.0")
    saved.save_pretrained(tmp_path / "rule")
    assert_same(metaopt.load(tmp_path / "rule"), saved)
    assert_same(metaopt.load(str(tmp_path / "rule")), saved)
    names = {path.name for path in (tmp_path / "rule").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}


def test_the_model_of_a_folder_is_a_checkpoint_by_itself(tmp_path: Path) -> None:
    saved = learned()
    saved.save_pretrained(tmp_path)
    saved.save(tmp_path / "alone.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    assert whole == (tmp_path / "alone.safetensors").read_bytes()


def test_config_json_is_the_configuration(tmp_path: Path) -> None:
    saved = learned()
    saved.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["config"] == saved.config.model_dump(mode="json")
    assert described["metaopt_version"] == metaopt.__version__


def test_the_card_has_front_matter_and_the_figures(tmp_path: Path) -> None:
    with_figures().save_pretrained(tmp_path)
    _, front, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["library_name"] == "metaopt"
    assert "metaopt.load(" in body
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]
    assert ["1", "0.5", "0.25 to 0.75"] in rows
    assert ["100", "0.125", "0.1 to 0.2"] in rows
    assert ["validation loss", "2", "1"] in rows
    assert "Diverged: 3 of 1024 tasks" in body


def test_a_card_without_figures_says_so(tmp_path: Path) -> None:
    replace(learned(), validation={}).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "No validation figures" in card
    assert "No figures on unseen tasks" in card


def test_config_of_another_rule_is_refused(tmp_path: Path) -> None:
    learned("update alone").save_pretrained(tmp_path)
    described = (tmp_path / "config.json").read_bytes()
    learned("flattened pair").save_pretrained(tmp_path)
    metaopt.load(tmp_path)
    (tmp_path / "config.json").write_bytes(described)
    with pytest.raises(CheckpointError) as caught:
        metaopt.load(tmp_path)
    one_line(caught, "config.json", "field config")
    (tmp_path / "config.json").unlink()
    assert metaopt.load(tmp_path).config == learned("flattened pair").config


@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_save_that_fails_leaves_a_whole_rule(
    operation: str, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = learned("update alone"), learned("flattened pair")
    old.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done, whole = [], getattr(os, operation)

    def failing_operation(*arguments: Any) -> None:
        done.append(arguments)
        if len(done) > failing:
            raise OSError(28, "No space left on device")
        whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, failing_operation)
        with pytest.raises(UserError) as caught:
            new.save_pretrained(tmp_path)
    one_line(caught, str(tmp_path), "No space left")
    kept_old = operation == "fsync" or failing == 0
    assert_same(metaopt.load(tmp_path), old if kept_old else new)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() <= before.keys()
    if operation == "fsync":
        # Where there is no room for all of it, nothing is replaced.
        assert after == before


@pytest.mark.parametrize("licence", [" ", "MIT\nfoo: bar", "see LICENSE"])
def test_a_licence_is_an_identifier(licence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        replace(learned(), licence=licence).save_pretrained(tmp_path)
    one_line(caught, "licence", "MIT")


def test_folders_without_a_model_and_files_in_the_way_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        metaopt.load(tmp_path)
    one_line(caught, str(tmp_path), "model.safetensors", "optimizer.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as in_the_way:
        learned().save_pretrained(tmp_path / "file")
    one_line(in_the_way, str(tmp_path / "file"))


# The hub.


class Hub:
    """Stands in for ``huggingface_hub``: remembers what it was asked."""

    def __init__(self, answer: Path | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[str, list[str]]] = []

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        self.asked.append((repo_id, allow_patterns))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def use_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, answer: Path | Exception) -> Hub:
    hub = Hub(answer)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(folder)
    return hub


def test_a_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = learned()
    saved.save_pretrained(tmp_path / "cache")
    hub = use_hub(monkeypatch, tmp_path, tmp_path / "cache")
    assert_same(metaopt.load("someone/some-rule"), saved)
    assert hub.asked == [("someone/some-rule", ["model.safetensors", "config.json"])]


def test_the_hub_is_asked_for_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = learned()
    saved.save_pretrained(tmp_path / "owner" / "rule")
    saved.save(tmp_path / "owner" / "file.safetensors")
    hub = use_hub(monkeypatch, tmp_path, RuntimeError("contacted"))
    assert_same(metaopt.load("owner/rule"), saved)
    assert_same(metaopt.load("owner/file.safetensors"), saved)
    for missing in ("owner/other", "other/rule.safetensors", "a/b/c", "rule", "/owner/rule", ""):
        with pytest.raises(CheckpointError):
            metaopt.load(missing)
    with pytest.raises(CheckpointError):
        metaopt.load(Path("another/rule"))
    assert hub.asked == []


@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nto host"), OSError(101, "unreachable"), ValueError("401")]
)
def test_a_hub_out_of_reach_is_told_in_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, tmp_path, error)
    with pytest.raises(CheckpointError) as caught:
        metaopt.load("someone/some-rule")
    one_line(caught, "someone/some-rule", type(error).__name__, "hub")


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        metaopt.load("someone/some-rule")
    one_line(caught, "someone/some-rule", "metaopt-symmetry[hub]")
    learned().save_pretrained(tmp_path / "rule")
    assert metaopt.load("rule").name == "tiny"
