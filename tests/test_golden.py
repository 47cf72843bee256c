"""A handful of golden numbers: each configuration, an evaluation, training loops, as they were.

In float64, of few steps: another processor rounds otherwise, and that is all it may do. Where
numbers are meant to change, they are made anew by

    PYTHONPATH=. python tests/test_golden.py
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from places import PRETRAINED, ROOT
from running import run_within
from torch import Tensor, nn

import metaopt

GOLDEN = ROOT / "tests/golden.json"
TASK = ["task.width=4", "task.inputs=4", "task.outputs=4", "task.samples=4"]
SETS = ["dtype=float64", "meta.batch=2", "validation.tasks=2"]
BRIEF = ["meta.outer_steps=3", "meta.steps=4", "meta.unroll=2", "validation.every=3"]
REGRESSION = [*SETS, *BRIEF, *TASK]
# Two windows a trajectory and six lists of options: each kind of network is met.
DIGITS = [*SETS, "meta.outer_steps=12", "meta.steps=4", "meta.unroll=2", "validation.every=12"]
CONFIGS = {
    **{
        f"{kind}_{parts}": REGRESSION
        for kind in ("coordinate", "lstm")
        for parts in ("lr_tele", "update", "update_tele")
    },
    **{f"paper/lstm_{parts}": REGRESSION for parts in ("lr_tele", "update", "update_tele")},
    "digits_update_tele": DIGITS,
}
# Rules that any shapes fit, and the hand-made ones.
CHECKPOINTS = ["coordinate_lr_tele", "coordinate_update", "coordinate_update_tele"]
EVALUATION = [
    "dtype=float64",
    "tasks=3",
    "steps=4",
    "tuning.tasks=2",
    "bootstrap=20",
    *TASK,
    "baselines=[GD, Momentum, Adam@2, L-BFGS, GD+teleport, K-FAC, solve W2, whiten W2]",
    "tuning.grids={GD: {lr: [1e-3, 1e-2]}, Momentum: {lr: [1e-3], momentum: [0.5]}, "
    "Adam: {lr: [0.1], beta1: [0.9], beta2: [0.9]}, L-BFGS: {history: [5]}, "
    "GD+teleport: {lr: [1e-3], norm: [0.01], ascents: [1], every: [2]}, "
    "K-FAC: {lr: [0.3], damping: [1e-3]}}",
]


def command(script: str, sets: list[str], *arguments: str) -> list[str]:
    return [script, *arguments, *(part for value in sets for part in ("--set", value))]


def train_command(config: str, folder: Path) -> list[str]:
    given = ["--config", f"{config}.yaml", "--out", str(folder / config)]
    return command("train_meta.py", CONFIGS[config], *given)


def trained(folder: Path) -> dict[str, Any]:
    """Meta-losses and validation losses of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "meta_loss": [row["meta_loss"] for row in rows if "meta_loss" in row],
        "validation": [row["val_loss_geomean"] for row in rows if "val_loss_geomean" in row],
    }


def evaluated(folder: Path) -> dict[str, Any]:
    """Losses by inner step of all optimizers of an evaluation."""
    results = json.loads((folder / "results.json").read_text())
    return {name: entry["loss_geomean"] for name, entry in results["optimizers"].items()}


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def chain() -> nn.Module:
    first, second = nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)
    return nn.Sequential(first, nn.LeakyReLU(0.1), second)


def convolutions() -> nn.Module:
    # The gradient of a bias ahead of BatchNorm would be rounding alone, which rules would see.
    first, second = nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(4, 3, 2)
    body = [first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(27, 3))


def looped(model: nn.Module, rule: Path, shape: tuple[int, ...], full_batch: bool) -> list[float]:
    """Losses of a training loop with a learned optimizer, and the size of the weights after it."""
    for i, p in enumerate(model.double().parameters()):
        with torch.no_grad():
            p.copy_(1 + 0.1 * draw(*p.shape, seed=i) if p.ndim == 1 else draw(*p.shape, seed=i) / 2)
    x, y = draw(*shape, seed=100), draw(shape[0], 3, seed=101)
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = metaopt.LearnedOptimizer(model, rule, full_batch=full_batch)
        for _ in range(6):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = 0.5 * (model(x) - y).square().sum()
                loss.backward()
                return loss

            losses.append(float(optimizer.step(closure)))
    return [*losses, float(sum(p.square().sum() for p in model.parameters()))]


def computed(folder: Path) -> Iterator[tuple[str, Any]]:
    """All that is golden, by name."""
    given = ["--out", str(folder / "eval"), "--checkpoints"]
    given += [str(PRETRAINED / f"{name}.safetensors") for name in CHECKPOINTS]
    runs = [train_command(config, folder) for config in CONFIGS]
    for script, *arguments in [*runs, command("eval_meta.py", EVALUATION, *given)]:
        done = run_within(script, *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    for config in CONFIGS:
        yield config, trained(folder / config)
    yield "evaluation", evaluated(folder / "eval")
    pair = PRETRAINED / "coordinate_update_tele.safetensors"
    yield "chain", looped(chain(), pair, (5, 5), full_batch=True)
    layer = folder / "digits_update_tele/optimizer.safetensors"
    yield "convolutions", looped(convolutions(), layer, (6, 1, 6, 6), full_batch=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(computed(tmp_path_factory.mktemp("golden")))


def assert_close(mine: Any, wanted: Any) -> None:
    """The same names and counts, and numbers equal but for rounding."""
    if isinstance(wanted, dict):
        assert mine.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_close(mine[key], value)
    elif isinstance(wanted[0], list):
        assert len(mine) == len(wanted)
        for one, other in zip(mine, wanted, strict=True):
            assert_close(one, other)
    else:
        assert mine == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", [*CONFIGS, "evaluation", "chain", "convolutions"])
def test_numbers_are_those_that_they_were(name: str, found: dict[str, Any]) -> None:
    assert_close(found[name], json.loads(GOLDEN.read_text())[name])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        GOLDEN.write_text(json.dumps(dict(computed(Path(made))), indent=1) + "\n")
