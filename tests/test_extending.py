"""docs/extending as it says: its files and rows in a copy of the package, trained and evaluated."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from places import ROOT
from running import run_commands

PAGES = ROOT / "docs" / "extending"
TABLES = {
    "built_in_rule": ("rules/config.py", "UPDATES: tuple[type[RuleConfig], ...] = (\n"),
    "baseline": ("rules/baselines.py", "BASELINES: dict[str, Baseline] = {\n"),
    "action": ("teleport/config.py", "PAIRS: dict[str, type[Action]] = {\n"),
    "engine": (
        "teleport/config.py",
        "ENGINES: dict[str, Callable[[TeleporterConfig, TaskConfig], Engine]] = {\n",
    ),
}
"""The file of the table that a page adds to, and the line that the table begins with."""
# More samples than inputs, which no teleport through the data would allow.
TASK = "task={width: 4, samples: 50}"
TRAINED = [TASK, "meta={batch: 2, outer_steps: 2, steps: 4, unroll: 2}", "validation.tasks=2"]
EVALUATED = [TASK, "tasks=2", "steps=22", "tuning.tasks=2", "bootstrap=5", "modules=[my_rules]"]


def _text(page: str) -> str:
    return (PAGES / f"{page}.md").read_text(encoding="utf-8")


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _text(page), flags=re.M | re.S)


def _extend(clone: Path, page: str) -> None:
    """Write the file that a page has, import its last class where the table is, add the row."""
    table, begin = TABLES[page]
    (content,), (row,) = _blocks(page, "python"), _blocks(page, "text")
    named = re.search(r"`(metaopt/[\w/]+\.py)`:\n", _text(page))
    assert named is not None
    (clone / named[1]).write_text(content)
    new = re.findall(r"^class (\w+)", content, flags=re.M)[-1]
    module = named[1].removesuffix(".py").replace("/", ".")
    path = clone / "metaopt" / table
    text = path.read_text()
    assert text.count(begin) == 1
    future = "from __future__ import annotations\n"
    text = text.replace(future, f"{future}\nfrom {module} import {new}\n", 1)
    path.write_text(text.replace(begin, begin + row, 1))


def _of(page: str, sets: list[str]) -> list[list[str]]:
    """The commands of a page, with further overrides."""
    lines = _blocks(page, "bash")[0].splitlines()
    added = [part for one in sets for part in ("--set", one)]
    return [[*line.removeprefix("metaopt ").split(), *added] for line in lines]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is printed where all that the pages add is trained, evaluated side by side and used."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "metaopt", clone / "metaopt")
    shutil.copytree(ROOT / "configs", clone / "configs")
    small = shutil.ignore_patterns("lstm_*")
    shutil.copytree(ROOT / "checkpoints", clone / "checkpoints", ignore=small)
    for page in TABLES:
        _extend(clone, page)
    rule, program = _blocks("rule", "python")
    files = {"my_rules.py": rule, "mine.yaml": _blocks("rule", "yaml")[0]}
    files |= {f"{page}.yaml": _blocks(page, "yaml")[0] for page in ("action", "engine")}
    files["signs.yaml"] = _blocks("baseline", "yaml")[0]
    for name, content in files.items():
        (clone / name).write_text(content)
    train, _ = _of("rule", TRAINED)
    (evaluation,) = _of("baseline", EVALUATED)
    runs = ["mine", "balanced_pair", "layers_pair"]
    sets = [part for one in TRAINED for part in ("--set", one)]
    built_in = ["--set", "rules.update={kind: learned_rate}"]
    commands = [
        train,
        ["train", "--config", "action.yaml", *built_in, *sets],
        ["train", "--config", "engine.yaml", *sets],
        [*evaluation, "--checkpoints", "coordinate_update"]
        + [f"runs/{name}/optimizer.safetensors" for name in runs],
        ["fields"],
    ]
    program = f"import torch\nfrom torch import nn\n{program}"
    return run_commands(commands, program, clone, PYTHONPATH=str(clone))


@pytest.mark.slow
def test_a_rule_of_ones_own_is_evaluated_with_its_module(said: str) -> None:
    assert "--set modules=[my_rules]" in _text("rule")
    assert "| mine " in said


@pytest.mark.slow
def test_a_built_in_rule_has_fields(said: str) -> None:
    assert re.search(r"\| `rules.update.start` \|.*the rate before meta-training", said)


@pytest.mark.slow
def test_a_baseline_is_tuned_for_each_step(said: str) -> None:
    assert "tuned SignGD: lr" in said
    assert "tuned SignGD@20: lr" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["balanced_pair", "layers_pair"])
def test_a_teleport_moves_and_keeps_the_outputs(said: str, name: str) -> None:
    (row,) = (line for line in said.splitlines() if line.startswith(f"| {name} ") and "%" in line)
    norm, refused, drift, _ = (cell.strip() for cell in row.strip("|").split("|")[-4:])
    assert float(norm) > 1e-5
    assert refused == "0 %"
    assert float(drift) < 1e-4


def test_what_the_pages_name_is_there() -> None:
    linked = set(re.findall(r"\]\((\w+)\.md\)", _text("index")))
    assert linked == {path.stem for path in PAGES.glob("*.md")} - {"index"}
    for path in PAGES.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (path.parent / link).is_file(), (path, link)
        for named in re.findall(r"`((?:metaopt|tests)/[\w/]+\.py)`", text):
            # Where a colon follows, it is the reader who writes it.
            assert f"`{named}`:\n" in text or (ROOT / named).is_file(), (path, named)
