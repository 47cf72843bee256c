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
_PROGRAM = '''
import sys
from importlib.machinery import ModuleSpec

class Broken:
    """Finds them, as torch looks for many packages, and fails when they are loaded."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED or name in BLOCKED:
            return ModuleSpec(name, self)
    def create_module(self, spec):
        BROKEN.append(spec.name)
        raise RuntimeError(f"{spec.name} is broken")
    def exec_module(self, module):
        pass

BLOCKED, BROKEN = sys.argv[2:], []
sys.meta_path.insert(0, Broken())
import json, torch
before = {*sys.modules}
BROKEN.clear()
import metaopt
print(json.dumps([*BROKEN, *{*sys.modules} - before]))
from torch import nn, ones

model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
metaopt.teleport(model, norm=0.1, seed=0)
optimizer = metaopt.LearnedOptimizer(model, sys.argv[1])
before = [p.detach().clone() for p in model.parameters()]
model(ones(4, 3)).square().mean().backward()
optimizer.step()
assert any((p != b).any() for p, b in zip(model.parameters(), before))
print(optimizer.rule)
from metaopt.__main__ import run
sys.argv = ["metaopt", "show", "digits_update_tele"]
run()
'''


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What is loaded by the import, the rule of a step, and the lines of ``metaopt show``."""
    path = str(PRETRAINED / "digits_update_tele.safetensors")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PROGRAM, path, *NOT_NEEDED],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_import_loads_nothing_that_is_slow_or_not_needed(said: list[str]) -> None:
    mine = {*json.loads(said[0])}
    assert {"metaopt", "metaopt.base.began", "metaopt.teleport.module"} <= mine
    assert not mine & {*NOT_NEEDED, *SLOW}


def test_a_step_is_taken_where_they_are_broken(said: list[str]) -> None:
    assert "layer LSTM(update,tele)" in said[1]


def test_a_rule_is_shown_where_they_are_broken(said: list[str]) -> None:
    assert "layer LSTM(update,tele)" in "\n".join(said[2:])


def test_all_public_names_are_there_and_no_others() -> None:
    assert {*metaopt.__all__} <= {*dir(metaopt)}
    for name in metaopt.__all__:
        assert getattr(metaopt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'optimizer_of_mine'"):
        getattr(metaopt, "optimizer_of_mine")  # noqa: B009
