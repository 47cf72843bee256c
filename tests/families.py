"""Small families of a user's own, their tasks, and runs on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import PLAIN_META, UPDATE, plain
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

import metaopt
from metaopt.base.config import check
from metaopt.base.streams import Stream
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from metaopt.optim.learned import LearnedRule
from metaopt.tasks.own_batch import LossFamily, LossTasks

CPU = torch.device("cpu")


class Logistic(metaopt.Family):
    """Two classes told apart by a plane, with label noise; data kept apart to be judged on."""

    apart = True

    def __init__(self, inputs: int = 4, batch: int | None = 8, examples: int = 24) -> None:
        self.inputs = inputs
        self.batch = batch
        self.examples = examples

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        plane = generator.normal(size=self.inputs)
        points = generator.normal(size=(2 * self.examples, self.inputs))
        noise = 0.3 * generator.normal(size=len(points))
        x, y = torch.from_numpy(points), torch.from_numpy((points @ plane + noise > 0).astype(int))
        weights = {
            "W": torch.from_numpy(generator.normal(size=(2, self.inputs))),
            "b": torch.zeros(2, dtype=torch.float64),
        }
        n = self.examples
        return metaopt.Task(weights, data=(x[:n], y[:n]), test=(x[n:], y[n:]) if self.apart else ())

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        x, y = data
        return functional.cross_entropy(x @ weights["W"].mT + weights["b"], y)


class Whole(Logistic):
    """The same in full batches, judged on what they are trained on."""

    apart = False

    def __init__(self) -> None:
        super().__init__(batch=None)


class Net(metaopt.Family):
    """Any nn.Module, on rows of a data set that all tasks share."""

    batch = 5

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))
        self.shared = tuple(torch.from_numpy(generator.normal(size=(30, k))) for k in (3, 2))

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        rows = torch.from_numpy(generator.permutation(30)[:12])
        return metaopt.Task(metaopt.fresh_weights(self.net, generator), (rows,))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        x, y = (tensor[data[0]] for tensor in shared)
        return (functional_call(self.net, weights, (x,)) - y).square().mean()


class Line(metaopt.Family):
    """Least squares in one number."""

    def noise(self, generator: np.random.Generator) -> Any:
        return generator.standard_normal(4)

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        x = torch.from_numpy(generator.standard_normal(4)).float()
        y = x + torch.as_tensor(self.noise(generator)).float()
        return metaopt.Task({"w": torch.zeros(1)}, (x, y))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *_: Tensor) -> Tensor:
        x, y = data
        return (weights["w"] * x - y).square().mean()


def draw(own: metaopt.Family, start: int = 0, count: int = 3) -> LossTasks:
    family = LossFamily(own, f"families:{type(own).__name__}")
    return family.sample(Stream.TRAIN, 7, start, count, torch.float64)


def own_config(
    options: dict[str, Any] | None = None, family: str = "families:Logistic", **meta: Any
) -> Any:
    return {
        "name": "own",
        "label": "own",
        "task": {"family": family, "options": options},
        "rules": {"update": plain("update", UPDATE | {"outer_lr": 3e-2})},
        "meta": PLAIN_META | {"batch": 4, "outer_steps": 4, "steps": 6, "unroll": 3} | meta,
        "validation": {"every": 2, "tasks": 8},
    }


def trained(outer: int, **sections: Any) -> MetaTrainer:
    run = MetaTrainer(check(TrainConfig, own_config(**sections), "own"), CPU)
    for _ in range(outer):
        run.outer_step()
    return run


def save_informed(path: Path) -> None:
    """A rule that reads the inputs of layers, trained on tasks that have them."""
    config = own_config()
    del config["task"]
    config["label"] = "informed"
    config["rules"]["update"] = {"kind": "informed_lstm", "hidden": 3, "outer_lr": 1e-2}
    checked = check(TrainConfig, config, "informed")
    LearnedRule(meta_optimizer(checked), checked).save(path)
