"""A family is what it draws and computes: what changes that is seen, what does not is not."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import assert_one_line, run_here

from metaopt.base import checkpoint
from metaopt.base.streams import Stream
from metaopt.tasks.build import task_family
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.identity import Identity, difference, identity

TASKS = '''
"""Lines with noise."""
import numpy as np
import torch
import metaopt
import helpers
from helpers import Base, targets as wanted
from math import sin as wave

SCALE = 1.5
UNUSED = 2.0
TABLE = np.load("table.npy")

def scaled(x):
    """SCALE times x."""
    return SCALE * x

class Mine(Base):
    def __init__(self, width=3):
        self.width = width
        self.rows = np.load("rows.npy")

    def sample(self, generator):
        x = torch.from_numpy(generator.standard_normal((4, self.width))).float()
        y = wanted(scaled(x), float(TABLE[0])) + self.rows[generator.integers(2)]
        return metaopt.Task({"w": torch.ones(self.width)}, (x, y))

    def loss(self, weights, data, *shared):
        x, y = data
        return helpers.error(x @ weights["w"], y) + wave(0.0)

class Other(metaopt.Family):
    pass

if __name__ == "__main__":
    print("mine")
'''
HELPERS = """
import torch
import metaopt
import deeper.parts

class Base(metaopt.Family):
    batch = 2

def targets(x, offset):
    return x.sum(-1) + offset

def error(found, wanted):
    from deeper.parts import squared
    return deeper.parts.mean(squared(found - wanted))

def unused():
    return 1
"""
PARTS = """
def mean(x):
    return x.mean()

def squared(x):
    return x * x
"""
FILES = {"tasks_of_mine.py": TASKS, "helpers.py": HELPERS, "deeper/parts.py": PARTS}
MODULES = ("tasks_of_mine", "helpers", "deeper", "deeper.parts")


def forget() -> None:
    for module in MODULES:
        sys.modules.pop(module, None)
    importlib.invalidate_caches()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The modules and data of a user, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "deeper").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    np.save(tmp_path / "table.npy", np.arange(1000.0))
    np.save(tmp_path / "rows.npy", np.arange(5000.0))
    forget()
    yield tmp_path
    forget()


def now(**options: Any) -> Identity:
    forget()
    family = task_family(TaskConfig(family="tasks_of_mine:Mine", options=options))
    found = identity(family, family.drawn(Stream.VALIDATION, 0, 0, 3))
    # As it is in a file.
    return json.loads(json.dumps(found))


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def test_nothing_changed(folder: Path) -> None:
    assert difference(now(), now()) is None


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tasks_of_mine.py", '"""SCALE times x."""', '"""Another text."""'),
        ("tasks_of_mine.py", '"""Lines with noise."""', "# Nothing is here.\n\n"),
        ("tasks_of_mine.py", "return SCALE * x", "# More.\n    return (SCALE  *  x)"),
        ("tasks_of_mine.py", "UNUSED = 2.0", "UNUSED = 3.0\nNEW = 1"),
        ("tasks_of_mine.py", "    pass", "    batch = 5"),
        ("tasks_of_mine.py", 'print("mine")', 'print("yours")'),
        ("helpers.py", "return 1", "return 2"),
    ],
)
def test_what_changes_nothing_is_not_seen(folder: Path, name: str, old: str, new: str) -> None:
    before = now()
    edit(name, old, new)
    assert difference(before, now()) is None


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("tasks_of_mine.py", "+ wave(0.0)", "+ 1e-9", "tasks_of_mine.Mine"),
        ("tasks_of_mine.py", "SCALE = 1.5", "SCALE = 1.6", "tasks_of_mine.SCALE"),
        ("tasks_of_mine.py", "return SCALE * x", "return SCALE + x", "tasks_of_mine.scaled"),
        ("tasks_of_mine.py", "import sin as", "import tan as", "tasks_of_mine.wave"),
        ("tasks_of_mine.py", "class Mine(", "Base.batch = 3\nclass Mine(", "tasks_of_mine"),
        ("helpers.py", "batch = 2", "batch = 3", "helpers.Base"),
        ("helpers.py", "+ offset", "- offset", "helpers.targets"),
        ("helpers.py", "deeper.parts.mean(", "2 * deeper.parts.mean(", "helpers.error"),
        ("deeper/parts.py", "x.mean()", "x.sum()", "deeper.parts.mean"),
        # Nothing at the initial weights shows it.
        ("deeper/parts.py", "x * x", "(x * x).clamp(max=1e9)", "deeper.parts.squared"),
    ],
)
def test_edits_are_seen_wherever_they_are(
    folder: Path, name: str, old: str, new: str, words: str
) -> None:
    before = now()
    edit(name, old, new)
    told = difference(before, now())
    assert told is not None
    assert words in told


@pytest.mark.parametrize("file", ["table.npy", "rows.npy"])
def test_one_number_in_a_file_is_seen(folder: Path, file: str) -> None:
    before = now()
    content = np.load(file)
    content[777] += 1
    np.save(file, content)
    told = difference(before, now())
    assert told is not None
    assert "code is as it was" in told
    assert {"table.npy": "TABLE", "rows.npy": "self.rows"}[file] in told


def test_options_are_seen(folder: Path) -> None:
    told = difference(now(), now(width=4))
    assert told is not None
    assert "weights" in told or "initial" in told


def test_rounding_is_no_change(folder: Path) -> None:
    before = now()
    content = np.load("rows.npy")
    np.save("rows.npy", content * (1 + 1e-7 * np.random.default_rng(0).standard_normal(5000)))
    after = now()
    # Here the bits tell that there is another file; on another machine they tell nothing.
    assert difference(before, after) is not None
    assert difference(before, after | {"machine": []}) is None
    content[:] = content[::-1]
    np.save("rows.npy", content)
    assert difference(before, now() | {"machine": []}) is not None


@pytest.mark.parametrize("field", ["weights", "data", "width"])
def test_families_of_this_package_are_told_apart_by_their_tasks(field: str) -> None:
    value = 5 if field == "width" else "gaussian"
    found = []
    for config in (TaskConfig(), TaskConfig(), TaskConfig().model_copy(update={field: value})):
        family = task_family(config)
        found.append(identity(family, family.drawn(Stream.VALIDATION, 0, 0, 3)))
    assert difference(found[0], found[1]) is None
    assert difference(found[0], found[2]) is not None


def test_not_a_number_is_a_value_like_any_other(folder: Path) -> None:
    np.save("rows.npy", np.full(5000, np.nan) * np.arange(5000) + np.arange(5000))
    edit("tasks_of_mine.py", "+ self.rows[generator.integers(2)]", "")
    before = now()
    assert difference(before, now()) is None
    np.save("rows.npy", np.arange(5000.0))
    assert difference(before, now()) is not None


CONFIG: dict[str, Any] = {
    "name": "own",
    "label": "own",
    "task": {"family": "tasks_of_mine:Mine"},
    "rules": {"update": {"kind": "coordinate_lstm", "hidden": 3, "outer_lr": 1e-3}},
    "meta": {"batch": 2, "outer_steps": 2, "steps": 2, "unroll": 2},
    "validation": {"every": 1, "tasks": 2},
}


def run_again(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    forget()
    return run_here(script, arguments, Path.cwd(), monkeypatch)


def test_an_edited_class_is_not_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.yaml").write_text(json.dumps(CONFIG))
    more = ["--resume", "--set", "meta.outer_steps=3"]
    assert run_again("train_meta.py", ["--config", "own.yaml"], monkeypatch) == 0
    saved = Path("runs/own/state.pt").read_bytes()
    edit("helpers.py", "+ offset", "- offset")
    capsys.readouterr()
    assert run_again("train_meta.py", ["--config", "own.yaml", *more], monkeypatch) == 2
    assert_one_line(capsys.readouterr().err, "helpers.targets", "tasks_of_mine:Mine", "--resume")
    assert Path("runs/own/state.pt").read_bytes() == saved
    edit("helpers.py", "- offset", "+ offset")
    np.save("table.npy", np.ones(1000))
    assert run_again("train_meta.py", ["--config", "own.yaml", *more], monkeypatch) == 2
    assert_one_line(capsys.readouterr().err, "a file that is read", "TABLE")
    np.save("table.npy", np.arange(1000.0))
    # A state of before there were identities.
    state = torch.load("runs/own/state.pt")
    del state["families"]
    checkpoint.write_state(Path("runs/own/state.pt"), state)
    assert run_again("train_meta.py", ["--config", "own.yaml", *more], monkeypatch) == 0
    assert "too old to tell" in capsys.readouterr().out


def test_hand_made_optimizers_are_tuned_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["task.family=tasks_of_mine:Mine", "baselines=[GD]", "tasks=2", "steps=2"]
    sets += ["tuning.grids={GD: {lr: [0.1, 0.01]}}", "tuning.tasks=2", "bootstrap=5"]
    arguments = ["--out", "e", *(part for value in sets for part in ("--set", value))]
    monkeypatch.setattr("metaopt.base.shipped.PRETRAINED", folder)
    cache = Path("runs/tuned_baselines.json")

    def tuned() -> tuple[str, dict[str, Any]]:
        capsys.readouterr()
        assert run_again("eval_meta.py", arguments, monkeypatch) == 0
        (kept,) = json.loads(cache.read_text()).values()
        return capsys.readouterr().out, kept

    _, first = tuned()
    told, again = tuned()
    assert "tuned again" not in told
    assert again == first
    edit("helpers.py", "deeper.parts.mean(", "100 * deeper.parts.mean(")
    told, edited = tuned()
    assert "tuned again: GD: tasks_of_mine:Mine: helpers.error changed" in told
    assert edited["values"] != first["values"]
    # One of before there were identities.
    (key,) = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: {"values": {"lr": 0.1}, "validation_loss": 1.0}}))
    assert tuned()[1]["values"] == edited["values"]
