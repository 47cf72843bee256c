"""A user's family in whole runs: resumed, and by the scripts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import own_config, save_informed, trained
from places import PRETRAINED
from running import run_here
from torch import nn

import metaopt


def test_meta_training_on_a_users_family_learns() -> None:
    run = trained(0, outer_steps=40, batch=8, steps=10, unroll=5)
    before = run.validate().losses
    while not run.finished:
        assert not run.outer_step().skipped
    after = run.validate().losses
    assert float((after[-1] / before[-1]).log().mean().exp()) < 0.7
    assert float((after[-1] / after[0]).log().mean().exp()) < 0.7


@pytest.mark.parametrize("estimator", [{"kind": "gradient"}, {"kind": "pes"}])
def test_it_resumes_to_the_same_bits(estimator: dict[str, Any]) -> None:
    unbroken = trained(3, estimator=estimator)
    first = trained(1, estimator=estimator)
    rest = trained(0, estimator=estimator)
    rest.restore(first.state())
    for _ in range(2):
        rest.outer_step()
    phi = [[*run.optimizer.state_dict().values()] for run in (unbroken, rest)]
    for one, other in zip(*phi, strict=True):
        assert torch.equal(one, other)


MODULE = """
import pathlib
pathlib.Path("imported").touch()
from families import Logistic as Mine
"""


def test_scripts_train_and_evaluate_on_a_users_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_tasks.py").write_text(MODULE)
    config = own_config({"inputs": 3})
    config["task"]["family"] = "my_tasks:Mine"
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert run_here("train_meta.py", ["--config", "mine.yaml"], tmp_path, monkeypatch) == 0
    assert (tmp_path / "imported").exists()

    # A checkpoint names the module; reading it imports nothing.
    (tmp_path / "imported").unlink()
    monkeypatch.delitem(sys.modules, "my_tasks")
    rule = metaopt.load(tmp_path / "runs" / "own" / "optimizer.safetensors")
    assert rule.config.task.family == "my_tasks:Mine"
    assert rule.config.task.options == {"inputs": 3}
    model = nn.Linear(3, 1)
    metaopt.LearnedOptimizer(model, rule)
    assert not (tmp_path / "imported").exists()

    paths = [
        str(PRETRAINED / f"{name}.safetensors") for name in ("lstm_update", "coordinate_lr_tele")
    ]
    grids = "{GD: {lr: [0.1, 1]}, L-BFGS: {history: [5]}}"
    sets = [
        "task.family=my_tasks:Mine",
        "baselines=[GD,L-BFGS]",
        f"tuning.grids={grids}",
        "tasks=4",
        "steps=3",
        "tuning.tasks=2",
        "bootstrap=10",
    ]
    arguments = [part for value in sets for part in ("--set", value)]
    save_informed(tmp_path / "informed.safetensors")
    arguments += ["--checkpoints", "runs/own/optimizer.safetensors", *paths, "informed.safetensors"]
    assert run_here("eval_meta.py", arguments, tmp_path, monkeypatch) == 0
    out = capsys.readouterr().out
    assert "left out: LSTM(update):" in out
    assert "left out: coordinate LSTM(lr,tele):" in out
    assert "left out: informed: it reads products of the layers' inputs" in out
    found = json.loads((tmp_path / "runs" / "eval" / "results.json").read_text())
    assert set(found["optimizers"]) == {"own", "GD", "L-BFGS"}
    assert found["family"] == "my_tasks:Mine"
    starts = [entry["loss_mean"][0] for entry in found["optimizers"].values()]
    assert starts == pytest.approx([starts[0]] * 3)
