"""Rules of a user's own: trained from a configuration, and never imported by a file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from running import run_within
from support import tiny_config

import metaopt
from metaopt.base import checkpoint
from metaopt.base.checkpoint import CheckpointError
from metaopt.base.config import ConfigError
from metaopt.meta.build import meta_optimizer
from metaopt.meta.trainer import MetaTrainer

OWN = {"kind": "signed_steps:SignedSteps", "options": {"start": -4.0}, "outer_lr": 0.1}
CPU = torch.device("cpu")


def test_a_rule_of_ones_own_is_trained_and_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    __import__("signed_steps")
    trainer = MetaTrainer(tiny_config({"update": OWN}, outer_steps=4), CPU)
    assert [float(p) for p in trainer.optimizer.parameters()] == [-4.0]
    trainer.outer_step()
    (z,) = (float(p) for p in trainer.optimizer.parameters())
    assert z == pytest.approx(-4.0 + 0.1, abs=1e-3) or z == pytest.approx(-4.0 - 0.1, abs=1e-3)
    path = tmp_path / "own.safetensors"
    checkpoint.write(path, trainer.checkpoint({}))
    loaded = metaopt.load(path)
    assert [float(p) for p in loaded.optimizer.parameters()] == [z]
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = metaopt.LearnedOptimizer([weight], loaded)
    (weight * torch.tensor([1.0, -2.0, 0.0])).sum().backward()
    optimizer.step()
    step = float(torch.tensor(z).exp())
    assert weight.tolist() == pytest.approx([1 - step, 1 + step, 1.0])
    monkeypatch.delitem(sys.modules, "signed_steps")
    with pytest.raises(CheckpointError, match=r"no file may import modules: .*import signed_steps"):
        metaopt.load(path)
    assert "signed_steps" not in sys.modules


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "signed_steps:NoRule"}, "expected a class there that is a metaopt.Rule"),
        ({"kind": "signed_steps:Missing"}, "expected a class there that is a metaopt.Rule"),
        ({"options": {"begin": 1.0}}, r"options: .*begin.*; SignedSteps\(start: 'float' = -5.0\)"),
        ({"kind": "os.system"}, "expected a kind that is one of"),
    ],
)
def test_mistakes_are_one_line(changed: dict[str, object], words: str) -> None:
    __import__("signed_steps")
    with pytest.raises(ConfigError, match=words) as caught:
        meta_optimizer(tiny_config({"update": OWN | changed}))
    assert "\n" not in str(caught.value)


def test_it_is_trained_from_yaml_and_evaluated(tmp_path: Path) -> None:
    source = Path(__file__).parent.parent / "signed_steps.py"
    (tmp_path / "my_rules.py").write_text(source.read_text())
    (tmp_path / "mine.yaml").write_text(
        "name: mine\n"
        "task: {width: 3, inputs: 4, outputs: 2, samples: 3}\n"
        "rules: {update: {kind: 'my_rules:SignedSteps', options: {start: -4.0}}}\n"
        "meta: {batch: 2, outer_steps: 2, steps: 4, unroll: 2}\n"
        "validation: {every: 2, tasks: 3}\n"
    )
    done = run_within("train_meta.py", "--config", "mine.yaml", cwd=tmp_path, overrides=[])
    assert done.returncode == 0, done.stderr
    tiny = ["tasks=2", "steps=3", "baselines=[]", "bootstrap=10"]
    tiny += ["task={width: 3, inputs: 4, outputs: 2, samples: 3}", "modules=[my_rules]"]
    path = "runs/mine/optimizer.safetensors"
    done = run_within("eval_meta.py", "--checkpoints", path, cwd=tmp_path, overrides=tiny)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
