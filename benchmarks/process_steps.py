"""Outer steps of one of several processes, and what exchanging meta-gradients takes.

    torchrun --nproc-per-node N -m benchmarks.process_steps CONFIG OUTER_STEPS KEY=VALUE ...

The first process prints one line of JSON, ``Steps``. ``benchmarks.processes`` starts it.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import asdict, dataclass

import torch

from benchmarks.timing import seconds
from metaopt.base.config import load
from metaopt.base.process import World, join
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer

CPU = torch.device("cpu")
EXCHANGES = 9


@dataclass(frozen=True)
class Steps:
    """What was measured; seconds are medians.

    Attributes:
        processes: N.
        seconds: of an outer step.
        exchange: of one exchange of meta-gradients by processes that have nothing else to do.
        bytes: of the meta-gradient.
    """

    processes: int
    seconds: float
    exchange: float
    bytes: int


def measured(world: World, config: str, steps: int, overrides: list[str]) -> Steps:
    """In this process, in step with the others."""
    trainer = MetaTrainer(load(TrainConfig, config, overrides), CPU, world)
    trainer.outer_step()
    taken = [seconds(trainer.outer_step, CPU) for _ in range(steps)]
    gradients = [torch.zeros_like(p) for own in trainer.networks.values() for p in own]
    numbers = torch.zeros(1)

    def exchange() -> None:
        world.mean_(gradients, numbers, numbers, (), 1 / world.size)

    exchange()
    exchanges = [seconds(exchange, CPU) for _ in range(EXCHANGES)]
    return Steps(
        world.size,
        statistics.median(taken),
        statistics.median(exchanges) if world.size > 1 else 0.0,
        sum(G.nbytes for G in gradients),
    )


def main() -> None:
    """Measure and print."""
    config, steps, *overrides = sys.argv[1:]
    torch.set_num_threads(1)
    world = join()
    found = measured(world, config, int(steps), overrides)
    if world.first:
        print(json.dumps(asdict(found)), flush=True)
    world.leave(0)


if __name__ == "__main__":
    main()
