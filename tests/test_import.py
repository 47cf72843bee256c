"""``import metaopt``: what it loads, what it does without, and that all public names are there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from places import PRETRAINED

import metaopt

# None of these is needed to take steps; the first three are in the environment and may be broken.
NOT_NEEDED = ["tensorboard", "matplotlib", "higher", "torch.utils.tensorboard", "sklearn"]
SLOW = ["pydantic", "yaml", "tqdm", "torch._dynamo", "torch._inductor"]
_STEP = '''
import sys
from importlib.machinery import ModuleSpec

class Broken:
    """Finds them, as torch looks for many packages, and fails when they are loaded."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED or name in BLOCKED:
            return ModuleSpec(name, self)
    def create_module(self, spec):
        raise RuntimeError(f"{spec.name} is broken")
    def exec_module(self, module):
        pass

BLOCKED = sys.argv[2:]
sys.meta_path.insert(0, Broken())
import metaopt
from torch import nn, ones

model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
metaopt.teleport(model, norm=0.1, seed=0)
optimizer = metaopt.LearnedOptimizer(model, sys.argv[1])
before = [p.detach().clone() for p in model.parameters()]
model(ones(4, 3)).square().mean().backward()
optimizer.step()
assert any((p != b).any() for p, b in zip(model.parameters(), before))
print(optimizer.rule)
'''


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_that_is_slow_or_not_needed() -> None:
    loaded = "import sys, json, torch; before = {*sys.modules}; import metaopt; "
    mine = {*json.loads(python(loaded + "print(json.dumps([*{*sys.modules} - before]))"))}
    assert {"metaopt", "metaopt.base.began", "metaopt.teleport.module"} <= mine
    assert not mine & {*NOT_NEEDED, *SLOW}


def test_a_step_is_taken_where_they_are_broken() -> None:
    shown = python(_STEP, str(PRETRAINED / "digits_update_tele.safetensors"), *NOT_NEEDED)
    assert "layer LSTM(update,tele)" in shown


def test_a_rule_is_shown_where_they_are_broken() -> None:
    run = "\nfrom metaopt.__main__ import run\nsys.argv = ['metaopt', 'show', sys.argv[1]]\nrun()"
    head = _STEP.partition("import metaopt")[0]
    assert "layer LSTM(update,tele)" in python(head + run, "digits_update_tele", *NOT_NEEDED)


def test_all_public_names_are_there_and_no_others() -> None:
    assert {*metaopt.__all__} <= {*dir(metaopt)}
    for name in metaopt.__all__:
        assert getattr(metaopt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'optimizer_of_mine'"):
        getattr(metaopt, "optimizer_of_mine")  # noqa: B009
