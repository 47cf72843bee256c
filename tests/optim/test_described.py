"""What a learned optimizer says of itself: ``print(rule)``, ``metaopt show`` of a run, licences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import yaml
from places import PRETRAINED
from running import TINY, run_here
from saved_rules import learned

import metaopt
from metaopt import __main__ as commands


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("path", sorted(PRETRAINED.glob("*.safetensors")), ids=lambda p: p.stem)
def test_a_rule_prints_in_ten_lines(path: Path) -> None:
    rule = metaopt.load(path)
    lines = str(rule).splitlines()
    assert len(lines) == 10
    assert lines[0] == rule.name
    found = dict(line.strip().split(maxsplit=1) for line in lines[1:])
    assert found["from"] == "shipped"
    assert found["licence"] == "MIT"
    assert found["horizon"] == str(rule.reach)
    assert found["command"] == rule.training["command"]
    assert found["commit"] == rule.training["commit"]
    assert repr(rule) == str(rule)


def test_a_rule_that_is_in_no_file_says_so() -> None:
    lines = str(learned()).splitlines()
    assert len(lines) == 10
    assert "  from        no file" in lines
    assert "  command     not known" in lines


def test_a_users_run_has_a_command_and_no_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, label: My rule, rules: {update: "
        "{kind: coordinate_lstm, hidden: 3, scale: 0.1, outer_lr: 1e-3}}}"
    )
    sets = [part for one in TINY for part in ("--set", one)]
    arguments = ["--config", str(tmp_path / "mine.yaml"), *sets]
    assert run_here("train_meta.py", arguments, tmp_path, monkeypatch) == 0
    rule = metaopt.load("runs/mine")
    assert rule.origin == "runs/mine"
    assert rule.licence == ""
    assert metadata(tmp_path / "runs/mine/optimizer.safetensors")["licence"] == ""
    wanted = " ".join(["python train_meta.py --config mine.yaml", *sets])
    assert rule.training["command"] == wanted
    assert str(tmp_path) not in str(metadata(tmp_path / "runs/mine/optimizer.safetensors"))
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["metaopt", "show", "runs/mine"])
    with pytest.raises(SystemExit) as ended:
        commands.run()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("My rule: runs/mine/optimizer.safetensors\n")
    assert "none given" in shown
    assert wanted in shown


def test_what_is_given_is_kept_and_what_is_not_is_left_out(tmp_path: Path) -> None:
    given = replace(learned(), licence="Apache-2.0")
    given.save_pretrained(tmp_path / "given")
    _, front, _ = (tmp_path / "given/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    assert metaopt.load(tmp_path / "given").licence == "Apache-2.0"
    learned().save_pretrained(tmp_path / "none")
    _, front, _ = (tmp_path / "none/README.md").read_text().split("---\n", 2)
    assert "license" not in yaml.safe_load(front)
    assert metaopt.load(tmp_path / "none").licence == ""


def test_files_that_are_older_than_the_field_are_under_that_of_the_package(tmp_path: Path) -> None:
    learned().save(tmp_path / "new")
    fields = metadata(tmp_path / "new")
    del fields["licence"]
    tensors = safetensors.torch.load_file(tmp_path / "new")
    safetensors.torch.save_file(tensors, tmp_path / "old", fields)
    assert metaopt.load(tmp_path / "old").licence == "MIT"
