"""Run by ``test_distributed`` in two processes: what each computes goes to a file of its own.

Alone: python -m torch.distributed.run --nproc-per-node 2 tests/distributed_worker.py FOLDER
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cases import train_config
from torch import Tensor

from metaopt.base import process
from metaopt.base.process import World
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer

KINDS = ["lstm", "coordinate_lstm_step", "adam"]
WINDOWS = 3
CPU = torch.device("cpu")


def config_of(kind: str) -> TrainConfig:
    """Five trajectories, which two processes cannot halve; windows of 4 and 2 inner steps."""
    meta = {"batch": 5, "outer_steps": 10, "steps": 6, "unroll": 4, "clip": None}
    return train_config(kind, meta=meta, validation={"every": 5, "tasks": 3})


def phi(trainer: MetaTrainer) -> Tensor:
    """All meta-parameters in one row."""
    return torch.cat([p.detach().flatten() for p in trainer.optimizer.parameters()])


def meta_gradient(trainer: MetaTrainer) -> Tensor:
    """That of the last window, in one row."""
    return torch.cat(
        [p.grad.flatten() for p in trainer.optimizer.parameters() if p.grad is not None]
    )


def trace(trainer: MetaTrainer) -> dict[str, Any]:
    """A few windows, one more, and a validation."""
    windows, gradients = [], []
    for _ in range(WINDOWS):
        windows.append(trainer.outer_step())
        gradients.append(meta_gradient(trainer))
    # A copy: what is in it goes on being trained.
    state = copy.deepcopy(trainer.state())
    trainer.outer_step()
    return {
        "meta_loss": [window.meta_loss for window in windows],
        "teleports": [window.teleports for window in windows],
        "grad_norms": [window.grad_norms for window in windows],
        "gradients": gradients,
        "state": state,
        "phi": phi(trainer),
        "validation": trainer.validate().losses,
    }


def resumed(config: TrainConfig, world: World, state: dict[str, Any]) -> Tensor:
    """phi after a state was taken up and one more window."""
    trainer = MetaTrainer(config, CPU, world)
    # A copy: Adam goes on in the tensors that it is given.
    trainer.restore(world.on_first(lambda: copy.deepcopy(state)))
    trainer.outer_step()
    return phi(trainer)


def poisoned(config: TrainConfig, world: World) -> dict[str, Any]:
    """A window after the weights of the last process's trajectories became infinite."""
    trainer = MetaTrainer(config, CPU, world)
    trainer.outer_step()
    before = phi(trainer)
    assert trainer.inner is not None
    if world.rank == world.size - 1:
        weights = tuple(W + torch.inf for W in trainer.inner.weights)
        trainer.inner = replace(trainer.inner, weights=weights)
    window = trainer.outer_step(lambda: [False, world.rank == 1, True])
    return {
        "skipped": window.skipped,
        "counted": trainer.progress.skipped,
        "kept": torch.equal(before, phi(trainer)),
        "votes": window.votes,
    }


def mean_of_two(world: World) -> dict[str, Any]:
    """Process 0 has a quarter of the batch."""
    own = float(world.rank + 1)
    gradients = [torch.full((2, 1), own), torch.tensor([0.0, torch.inf if world.rank else 1.0])]
    means, maxima, votes = world.mean_(
        gradients,
        torch.tensor([own, 8.0]),
        torch.tensor([-own, 3 * own]),
        [world.rank == 0, True, False],
        0.75 if world.rank else 0.25,
    )
    numbers = {"means": means, "maxima": maxima, "votes": votes}
    return {name: number.tolist() for name, number in numbers.items()} | {"gradients": gradients}


def main() -> None:
    """Everything for every kind of rules."""
    world = process.join()
    found: dict[str, Any] = {
        "means": mean_of_two(world),
        "gathered": world.gather(world.rank),
        "collected": world.collect(world.rank),
        "poisoned": poisoned(config_of(KINDS[0]), world),
    }
    for kind in KINDS:
        config = config_of(kind)
        found[kind] = trace(MetaTrainer(config, CPU, world))
        found[kind]["resumed"] = resumed(config, world, found[kind]["state"])
        alone = trace(MetaTrainer(config, CPU))["state"]
        found[kind]["resumed from one process"] = resumed(config, world, alone)
    torch.save(found, Path(sys.argv[1]) / f"{world.rank}.pt")
    world.close()


if __name__ == "__main__":
    main()
