"""What ships is found by name: after a path of that name, and before the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from places import PRETRAINED
from saved_rules import learned

import metaopt
from metaopt.base import config, shipped
from metaopt.base.checkpoint import CheckpointError
from metaopt.base.config import ConfigError
from metaopt.optim import hub


@pytest.mark.parametrize("name", ["coordinate_update_tele", "coordinate_update_tele.yaml"])
def test_a_configuration_has_a_name_with_yaml_or_without(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.find(name) == shipped.CONFIGS / "coordinate_update_tele.yaml"
    assert config.find("paper/lstm_update").parent.name == "paper"
    (tmp_path / name).write_text("name: mine")
    assert config.find(name) == Path(name)


def test_a_name_never_leads_out_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("../pyproject.toml", "/etc/hostname.yaml", "", ".", "paper"):
        assert shipped.configuration(name) is None
    with pytest.raises(ConfigError) as caught:
        config.find("coordinate_updat")
    assert "coordinate_update_tele.yaml, " in str(caught.value)


@pytest.mark.parametrize("name", ["coordinate_update", "coordinate_update.safetensors"])
def test_a_shipped_optimizer_has_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert metaopt.load(name).name == "coordinate LSTM(update)"
    learned().save(tmp_path / name)
    assert metaopt.load(name).name == "tiny"


def test_a_run_stands_for_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    learned().save(tmp_path / "runs/mine/optimizer.safetensors")
    assert metaopt.load("runs/mine").name == "tiny"
    assert hub.origin("runs/mine", hub.located("runs/mine")) == "runs/mine"


def test_a_large_one_that_is_not_here_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "data"
    installed.mkdir()
    for path in PRETRAINED.glob("coordinate_*.safetensors"):
        shutil.copy(path, installed)
    monkeypatch.setattr(shipped, "PRETRAINED", installed)
    assert metaopt.load("coordinate_update").name == "coordinate LSTM(update)"
    for name in shipped.LARGE:
        with pytest.raises(CheckpointError) as caught:
            metaopt.load(name)
        assert f"checkpoints/pretrained/{name}.safetensors" in str(caught.value)
        assert "clone" in str(caught.value)


def test_a_name_that_nothing_has_lists_those_that_there_are() -> None:
    with pytest.raises(CheckpointError) as caught:
        metaopt.load("coordinate_updat")
    for path in shipped.optimizers():
        assert path.stem in str(caught.value)


def test_what_is_large_is_named() -> None:
    sizes = {path.stem: path.stat().st_size for path in PRETRAINED.glob("*.safetensors")}
    assert {name for name, size in sizes.items() if size > 1_000_000} == {*shipped.LARGE}
