"""docs/start/tutorial.md from its first block to its last, in tiny sizes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

PAGE = (ROOT / "docs" / "start" / "tutorial.md").read_text(encoding="utf-8")
TINY = {
    "train": ["meta={batch: 2, outer_steps: 2, steps: 4, unroll: 2}", "validation.tasks=2"],
    "eval": ["tasks=2", "steps=3", "tuning.tasks=2", "bootstrap=5", "baselines=[Momentum]"],
}


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    family, *own_loop = blocks("python")
    training, evaluation = blocks("yaml")
    for name, content in (
        ("my_tasks.py", family),
        ("moons.yaml", training),
        ("moons_eval.yaml", evaluation),
        ("own_loop.py", "\n".join(own_loop)),
    ):
        (tmp_path / name).write_text(content)
    said = ""
    for line in blocks("bash")[1:]:
        program, *arguments = line.split()
        assert program == "metaopt"
        sets = [part for value in TINY[arguments[0]] for part in ("--set", value)]
        said += run([sys.executable, "-m", "metaopt", *arguments, *sets], tmp_path)
    assert "| Momentum" in said
    said = run([sys.executable, "own_loop.py"], tmp_path)
    assert re.search(r"^test loss \d", said, flags=re.M)
    assert "my_tasks:TwoMoons" in said
    assert "positive scaling" in said
    assert "outputs agree: True" in said
    assert (tmp_path / "moons-optimizer" / "model.safetensors").is_file()
