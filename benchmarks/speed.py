"""How fast meta-training and evaluation are, beside the machine's limit and other ways to do it.

    python -m benchmarks.speed [--device cpu|cuda|cuda:N] [--json FILE]

In one process (about 6 minutes on 2 CPU cores):

- the machine's float32 matmul rate and copy bandwidth;
- seconds for a 100-step trajectory of meta-training (outer steps: unroll of K = 10, backward, Adam)
  and of evaluation, for flattened rules (``configs/paper/``) and coordinate-wise ones, with and
  without teleport, by meta-batch; the operations counted from the shapes (``counting``), the share
  of the matmul rate that they reach, and peak memory (``memory``, in processes of their own). What
  would take over 60 s or 4 GB is left out by name;
- yardsticks (``yardsticks``), in turns with metaopt: ratios above 1 mean that metaopt is faster;
- where the time of an outer step goes (``breakdown``).

Times are medians over 3 repeats after a warm-up. JAX is needed for its yardstick only:
``pip install -c constraints.txt -e '.[bench]'``. ``--json`` writes all figures to a file.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch

from benchmarks import breakdown, machine, scaling, yardsticks
from benchmarks.timing import REPEATS
from benchmarks.work import Mode, Work
from metaopt.base import cli
from metaopt.base.process import World
from studies.output import add_arguments, write_json

FLATTENED = ("paper/lstm_update_tele.yaml", "paper/lstm_update.yaml")
COORDINATE = ("coordinate_update_tele.yaml", "coordinate_update.yaml")
BATCHES = (1, 16, 64, 256, 1024)
MODES: tuple[Mode, ...] = ("meta-training", "evaluation")
BFLOAT16 = ("products=bfloat16",)
"""For metaopt alone: its rivals stay in float32."""
LOOP_AND_JAX = (yardsticks.LOOP, yardsticks.JAX)
CELL_AND_JAX = (yardsticks.CELL, yardsticks.JAX)
COMPARED: tuple[tuple[str, int, tuple[str, ...], tuple[str, ...]], ...] = (
    (FLATTENED[0], 64, LOOP_AND_JAX, ()),
    (FLATTENED[0], 64, LOOP_AND_JAX, BFLOAT16),
    (FLATTENED[1], 64, LOOP_AND_JAX, ()),
    (FLATTENED[0], 256, (yardsticks.JAX,), ()),
    (FLATTENED[0], 256, (yardsticks.JAX,), BFLOAT16),
    (COORDINATE[0], 8, CELL_AND_JAX, ()),
    (COORDINATE[0], 64, CELL_AND_JAX, ()),
    (COORDINATE[1], 64, CELL_AND_JAX, ()),
)
"""(configuration, meta-batch, rivals, what is set)."""
BREAKDOWN_BATCH = 64
BREAKDOWN_SECONDS = 4.0


def main(world: World) -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description="Speed of meta-training and evaluation.")
    add_arguments(parser)
    arguments = parser.parse_args()
    device = cli.device(arguments.device, world)
    began = time.perf_counter()
    here = machine.measure(device)
    print(here.lines(), flush=True)
    found: dict[str, Any] = {
        "machine": here.as_dict(),
        "scaling": scaled(device, here.matmul_flops),
        "yardsticks": compared(device),
        "breakdown": broken_down(device),
    }
    found["seconds"] = time.perf_counter() - began
    print(f"\n{found['seconds']:.0f} s in all")
    if arguments.json is not None:
        write_json(arguments.json, found)


def scaled(device: torch.device, matmul_flops: float) -> list[Any]:
    """By meta-batch."""
    rows: list[scaling.Row] = []
    for mode in MODES:
        plain = [(config, ()) for config in (*FLATTENED, *COORDINATE)]
        for config, overrides in (*plain, (FLATTENED[0], BFLOAT16)):
            works = [Work(config, mode, batch, overrides) for batch in BATCHES]
            rows += scaling.scaling(works, device, matmul_flops)
            print(f"measured: {mode} of {works[0].label}", file=sys.stderr, flush=True)
    print(f"\nSeconds for a trajectory of 100 steps\n\n{scaling.table(rows)}", flush=True)
    return [*scaling.as_dicts(rows)]


def compared(device: torch.device) -> list[Any]:
    """Beside the yardsticks."""
    missing = yardsticks.jax_missing(device)
    found = [
        yardsticks.compared(
            config,
            batch,
            [rival for rival in rivals if missing is None or rival != yardsticks.JAX],
            device,
            overrides,
        )
        for config, batch, rivals, overrides in COMPARED
    ]
    print("\nMeta-training, seconds for a trajectory (how many times metaopt is faster)\n")
    print(yardsticks.table(found), flush=True)
    if missing is not None:
        print(missing)
    return [comparison.as_dict() for comparison in found]


def broken_down(device: torch.device) -> dict[str, Any]:
    """Where time goes."""
    found = {}
    for config in (FLATTENED[0], COORDINATE[0]):
        work = Work(config, "meta-training", BREAKDOWN_BATCH)
        _, window, _ = scaling.trajectory_seconds(work, device, budget=0)
        windows = scaling.windows_within(
            REPEATS * BREAKDOWN_SECONDS, window, work.windows_of_trajectory
        )
        found[config.removesuffix(".yaml")] = breakdown.breakdown(work, windows, device)
    print(f"\nWhere time goes at meta-batch {BREAKDOWN_BATCH}\n\n{breakdown.table(found)}")
    return found


if __name__ == "__main__":
    cli.run(main)
