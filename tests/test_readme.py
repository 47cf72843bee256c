"""The README is short, its commands and code are right, and its figures are the study's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def test_it_is_at_most_eight_kilobytes() -> None:
    assert len(README.encode()) <= 8192


def test_it_has_the_two_commands() -> None:
    train, test = _blocks("bash")
    assert "python train_meta.py --config lstm_update_tele.yaml && python eval_meta.py" in train
    for block in (train, test):
        assert len(block.strip().splitlines()) == 1
        assert "pip install -q -c constraints.txt -e" in block
    assert f"<!-- test command -->\n```bash\n{test}```" in README
    for part in ("ruff check .", "ruff format --check .", "mypy", "python -m pytest"):
        assert part in test


@pytest.mark.slow
def test_its_code_runs_from_any_folder(tmp_path: Path) -> None:
    blocks = _blocks("python")
    for block in blocks:
        assert len([line for line in block.splitlines() if line.strip()]) <= 10
    code = "\n".join([*blocks, "print(optimizer.state_dict()['param_groups'][0]['steps'])"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "positive scaling" in done.stdout
    assert done.stdout.rstrip().endswith("\n20")


def test_files_and_commands_that_it_names_exist() -> None:
    linked = [path for path in re.findall(r"\]\(([^)]+)\)", README) if "://" not in path]
    assert len(linked) > 10
    assert [path for path in linked if not (ROOT / path).is_file()] == []
    folders = re.findall(r"^- `(\w+)/`:", README, flags=re.M)
    assert folders == [folder for folder in folders if (ROOT / "metaopt" / folder).is_dir()]
    assert len(folders) == 9
    for module in re.findall(r"python -m (studies[\w.]*)", README):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module


def _table(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_figures_of_its_table_are_those_of_the_studies() -> None:
    names = ("study_coordinate.json", "digits.md")
    (study,), (digits,) = ((ROOT / "docs").rglob(name) for name in names)
    found: set[tuple[str, ...]] = set()
    for family in json.loads(study.read_text(encoding="utf-8"))["families"].values():
        for entry in family["contenders"].values():
            at = entry["over_seeds"]["at"]
            figures = (f"{at[step]['geomean']:.3g}" for step in ("10", "20", "100"))
            found.add((entry["label"].removesuffix(", from default"), *figures, ""))
    found |= {tuple(cells[:5]) for cells in _table(digits.read_text(encoding="utf-8"))}
    header, _, *rows = _table(README)
    assert header == ["tasks", "optimizer", "10", "20", "100", "1,000"]
    assert 0 < len(rows) <= 10
    assert [row for row in rows if tuple(row[1:]) not in found] == []
