"""The site builds strictly: links and anchors lead somewhere, generated parts are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from places import ROOT

import metaopt

LARGEST = 30_000
"""Bytes of a page: full tables belong into the JSON beside it."""


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
