"""Values of hand-made optimizers are tuned once, and again where what is kept is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metaopt.base.config import load
from metaopt.base.process import World
from metaopt.evaluation import tuning
from metaopt.evaluation.config import EvalConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "entry",
    [None, 7, [], {}, {"values": {"lr": 5.0}, "validation_loss": 1.0}, {"values": [1]}],
)
def test_a_tuned_value_that_is_none_is_tuned_again(entry: Any, tmp_path: Path) -> None:
    sizes = ("width=3", "inputs=4", "outputs=2", "samples=3")
    given = [f"task.{size}" for size in sizes]
    given += ["steps=2", "tuning.tasks=2", "baselines=[GD]", "tuning.grids={GD: {lr: [1e-3]}}"]
    config, cache = load(EvalConfig, "eval.yaml", given), tmp_path / "cache.json"
    wanted = tuning.tune(config, CPU, cache, World())
    (key,) = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: entry}))
    assert tuning.tune(config, CPU, cache, World()) == wanted
    assert wanted[0].values == {"lr": 1e-3}
