"""docs/start/tutorial.md from its first block to its last, in tiny sizes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import ROOT
from running import run_commands

PAGE = (ROOT / "docs" / "start" / "tutorial.md").read_text(encoding="utf-8")
TINY = {
    "train": ["meta={batch: 2, outer_steps: 2, steps: 4, unroll: 2}", "validation.tasks=2"],
    "eval": ["tasks=2", "steps=3", "tuning.tasks=2", "bootstrap=5", "baselines=[Momentum]"],
}


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


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
    commands = []
    for line in blocks("bash")[1:]:
        program, *arguments = line.split()
        assert program == "metaopt"
        sets = [part for value in TINY[arguments[0]] for part in ("--set", value)]
        commands.append([*arguments, *sets])
    own = "import runpy; runpy.run_path('own_loop.py', run_name='__main__')"
    said = run_commands(commands, own, tmp_path)
    assert "| Momentum" in said
    assert re.search(r"^test loss \d", said, flags=re.M)
    assert "my_tasks:TwoMoons" in said
    assert "positive scaling" in said
    assert "outputs agree: True" in said
    assert (tmp_path / "moons-optimizer" / "model.safetensors").is_file()
