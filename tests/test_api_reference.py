"""The API reference is generated, with a page for every public module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from places import ROOT


def test_every_public_module_has_a_page(tmp_path: Path) -> None:
    command = [sys.executable, "docs/api.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for path in (ROOT / "metaopt").rglob("*.py"):
        module = path.relative_to(ROOT)
        if not module.name.startswith("_"):
            page = (tmp_path / module).with_suffix(".html")
            assert page.is_file(), page
    front = (tmp_path / "metaopt.html").read_text(encoding="utf-8")
    assert "LearnedOptimizer" in front
