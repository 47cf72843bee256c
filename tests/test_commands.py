"""``metaopt train | eval | show | fields``, and files that can be run by their paths."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from places import ROOT

import metaopt
from metaopt import __main__ as commands
from metaopt.__main__ import tables

SHIPPED = ROOT / "checkpoints/pretrained/coordinate_update.safetensors"
FOLDERS = [ROOT / name for name in ("metaopt", "benchmarks", "tests", "docs", "studies")]


def test_no_name_is_one_of_the_standard_library() -> None:
    names = {
        path.stem: path
        for folder in FOLDERS
        for path in [folder, *folder.rglob("*")]
        if path.suffix == ".py" or path.is_dir()
    }
    assert {"metaopt", "show", "rules", "benchmarks", "study"} <= names.keys()
    assert {name: names[name] for name in names.keys() & sys.stdlib_module_names} == {}


def test_a_module_is_run_by_its_path() -> None:
    done = subprocess.run(
        [sys.executable, "metaopt/__main__.py", "fields"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == tables()


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["metaopt", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.run()
    return ended.value.code


def test_fields_and_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fields", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.strip() == tables()
    assert run("show", str(SHIPPED), monkeypatch=monkeypatch) == 0
    assert "coordinate LSTM(update)" in capsys.readouterr().out


def test_train_and_eval_do_what_the_scripts_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--set", "task={width: 3, inputs: 3, outputs: 3, samples: 3}"]
    meta = ["--set", "meta={batch: 2, outer_steps: 1, steps: 2, unroll: 2}"]
    train = ["train", "--config", "coordinate_update.yaml", *small, *meta]
    assert run(*train, "--set", "validation.tasks=2", monkeypatch=monkeypatch) == 0
    learned = "runs/coordinate_update/optimizer.safetensors"
    assert learned in capsys.readouterr().out
    few = ["--set", "tasks=2", "--set", "steps=2", "--set", "bootstrap=5", "--set", "baselines=[]"]
    evaluate = ["eval", "--checkpoints", learned, *small, *few]
    assert run(*evaluate, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "runs/eval/results.json").is_file()


MODEL = """
from torch import nn, ones
from beside import WIDTH

def build():
    return nn.Sequential(nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

def with_example():
    return build(), ones(5, 2)

def missing():
    return build().nothing

number = 3
def returns():
    return number
"""


def _of_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    (folder / "of_mine.py").write_text(MODEL, encoding="utf-8")
    (folder / "beside.py").write_text("WIDTH = 7", encoding="utf-8")


@pytest.mark.parametrize("function", ["build", "with_example"])
def test_show_of_a_model_prints_its_symmetries(
    function: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _of_a_model(tmp_path, monkeypatch)
    assert run("show", f"of_mine.py:{function}", monkeypatch=monkeypatch) == 0
    first, blank, *table = capsys.readouterr().out.splitlines()
    assert first == f"of_mine.py:{function}: Sequential, 29 parameters"
    assert not blank
    assert table[0].startswith("2 symmetries, orbit of dimension 7")
    assert any("positive scaling" in line and "0 -> 2" in line for line in table)
    assert any("permutation" in line and "0 -> 2" in line for line in table)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.py:build", ["there is no file nowhere.py"]),
        ("of_mine.py:other", ["of_mine.py:other", "no function 'other'", "returns a model"]),
        ("of_mine.py:number", ["no function 'number'"]),
        ("of_mine.py:missing", ["of_mine.py:missing: line 12, AttributeError", "nothing"]),
        ("of_mine.py:returns", ["returns 3, expected a torch.nn.Module"]),
        ("fails.py:build", ["fails.py:build: line 2, ZeroDivisionError: division by zero"]),
        ("broken.py:build", ["broken.py:build", "SyntaxError", "line 1"]),
    ],
)
def test_mistakes_in_a_model_end_in_one_line(
    source: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _of_a_model(tmp_path, monkeypatch)
    (tmp_path / "fails.py").write_text("def build(): ...\n1 / 0", encoding="utf-8")
    (tmp_path / "broken.py").write_text("def build(:", encoding="utf-8")
    assert run("show", source, monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["command"]),
        (["frobnicate"], ["frobnicate", "train"]),
        (["show"], ["metaopt show", "FILE_OR_DIR"]),
        (["show", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["fields", "x"], ["metaopt fields", "x"]),
        (["train"], ["metaopt train", "--config"]),
        (["eval", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*arguments, monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line


def test_help_of_a_command_is_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in commands.COMMANDS:
        assert run(command, "--help", monkeypatch=monkeypatch) == 0
        assert f"usage: metaopt {command}" in capsys.readouterr().out


def test_the_console_script_is_this_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["metaopt"].partition(":")
    assert getattr(import_module(module), function) is commands.run


def test_the_version_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--version", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == f"metaopt {metaopt.__version__}\n"
