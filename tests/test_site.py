"""The site builds strictly: links and anchors lead somewhere, generated parts are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from running import run_commands

import metaopt

LARGEST = 30_000
"""Bytes of a page: full tables belong into the JSON beside it."""
TINY = {"batch": 2, "outer_steps": 2, "steps": 4, "unroll": 2}


def test_no_page_is_too_long() -> None:
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs").rglob("*.md")}
    assert {name: size for name, size in sizes.items() if size > LARGEST} == {}


def test_it_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    public = set(metaopt.__all__) - {"__version__"}
    assert {name for name in public if f'id="metaopt.{name}"' not in reference} == set()
    fields = (tmp_path / "reference" / "fields" / "index.html").read_text(encoding="utf-8")
    assert "<code>meta.unroll</code>" in fields
    assert (tmp_path / "search" / "search_index.json").is_file()


@pytest.mark.slow
def test_a_pair_on_your_own_family_trains_with_what_its_page_writes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guide" / "own_pair.md").read_text(encoding="utf-8")
    family, configuration, lines = re.findall(
        r"^```(?:python|yaml)\n(.*?)^```", page, flags=re.M | re.S
    )
    head = configuration.split("rules:")[0]
    (tmp_path / "pair_tasks.py").write_text(family)
    (tmp_path / "pair.yaml").write_text(configuration)
    (tmp_path / "digits_like.yaml").write_text(head + lines)
    tiny = [f"meta.{name}={value}" for name, value in TINY.items()]
    sets = [part for value in [*tiny, "validation.tasks=2"] for part in ("--set", value)]
    names = ("pair", "digits_like")
    run_commands(
        [["train", "--config", f"{name}.yaml", *sets, "--out", name] for name in names],
        "",
        tmp_path,
    )
    for name in names:
        assert (tmp_path / name / "optimizer.safetensors").is_file()
