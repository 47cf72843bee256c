"""How fast meta-training and evaluation are, beside the machine's limit and other ways to do it.

    python -m benchmarks.speed [--device cpu|cuda|cuda:N] [--json FILE]

In one process (about 6 minutes on 2 CPU cores):

- the machine's float32 matmul rate and copy bandwidth;
- seconds for a 100-step trajectory of meta-training (outer steps: unroll of K = 10, backward, Adam)
  and of evaluation, for flattened rules (``configs/paper/``) and coordinate-wise ones, with and
  without teleport, by meta-batch; the operations counted from the shapes (``counting``), the share
  of the matmul rate that they reach, and peak memory (``memory``, in processes of their own). What
  would take over 60 s or 4 GB is left out by name;
- a loop over single trajectories in plain PyTorch (``plain_loop``), in turns with metaopt: ratios
  above 1 mean that metaopt is faster;
- where the time of an outer step goes (``breakdown``), and what share of the matmul rate the
  products of the LSTMs' weights reach by themselves, which bounds that of the whole step.

Times are medians over 3 repeats after a warm-up. ``--json`` writes all figures to a file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import breakdown, machine, plain_loop
from benchmarks.counting import evaluation_flop, training_flop
from benchmarks.sweep import (
    BUDGET,
    Mode,
    Piece,
    Row,
    Work,
    sweep,
    trajectory_seconds,
    windows_within,
)
from benchmarks.timing import REPEATS
from metaopt.base import cli
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from studies.output import add_device, add_json, write_json

FLATTENED = ("paper/lstm_update_tele.yaml", "paper/lstm_update.yaml")
COORDINATE = ("coordinate_update_tele.yaml", "coordinate_update.yaml")
BATCHES = (1, 16, 64, 256, 1024)
MODES: tuple[Mode, ...] = ("meta-training", "evaluation")
BFLOAT16 = ("precision=bfloat16",)
"""For metaopt alone: the loop stays in float32."""
COMPARED = ((FLATTENED[0], ()), (FLATTENED[0], BFLOAT16), (FLATTENED[1], ()))
COMPARED_BATCH = 64
BREAKDOWN_BATCH = 64
BREAKDOWN_SECONDS = 4.0


def main(world: World) -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description="Speed of meta-training and evaluation.")
    add_device(parser)
    add_json(parser)
    arguments = parser.parse_args()
    device = cli.device(arguments.device, world)
    began = time.perf_counter()
    here = machine.measure(device)
    print(here.lines(), flush=True)
    found: dict[str, Any] = {
        "machine": vars(here),
        "scaling": [vars(row) for row in scaled(device, here.matmul_flops)],
        "plain_loop": compared(device),
        "breakdown": broken_down(device, here.matmul_flops),
    }
    found["seconds"] = time.perf_counter() - began
    print(f"\n{found['seconds']:.0f} s in all")
    if arguments.json is not None:
        write_json(arguments.json, found)


@dataclass(frozen=True)
class Scaled(Row):
    """A row of the sweep by meta-batch."""

    flop: int = 0  # of the networks in one trajectory
    share: float = 0.0  # of the machine's matmul rate


def scaling(
    works: Sequence[Work], device: torch.device, matmul_flops: float, budget: float = BUDGET
) -> Iterator[Scaled]:
    """A row for each of one configuration and mode, meta-batches ascending."""
    pieces = [Piece(work.batch, work) for work in works]
    for work, row in zip(works, sweep(pieces, device, budget=budget), strict=True):
        flop, share = 0, 0.0
        if row.left_out is None:
            count = training_flop if work.mode == "meta-training" else evaluation_flop
            flop = count(work.loaded())
            share = flop / row.seconds / matmul_flops
        yield Scaled(**vars(row), flop=flop, share=share)


def table(rows: Sequence[Scaled]) -> str:
    """For people."""
    lines = []
    for row in rows:
        cells = [f"left out: {row.left_out}", "", "", "", ""]
        if row.left_out is None:
            cells = [
                f"{row.seconds:.4g}",
                f"{row.flop / 1e9:.2f}",
                f"{100 * row.share:.0f} %",
                f"{row.peak_bytes / 1e6:.0f}",
                str(row.windows),
            ]
        lines.append([row.label, row.mode, str(row.batch), *cells])
    header = ["configuration", "mode", "B", "s/trajectory", "GFLOP", "share", "peak MB", "windows"]
    return markdown_table(header, lines)


def scaled(device: torch.device, matmul_flops: float) -> list[Scaled]:
    """By meta-batch."""
    rows: list[Scaled] = []
    for mode in MODES:
        plain = [(config, ()) for config in (*FLATTENED, *COORDINATE)]
        for config, overrides in (*plain, (FLATTENED[0], BFLOAT16)):
            works = [Work(config, mode, batch, overrides) for batch in BATCHES]
            rows += scaling(works, device, matmul_flops)
            print(f"measured: {mode} of {works[0].label}", file=sys.stderr, flush=True)
    print(f"\nSeconds for a trajectory of 100 steps\n\n{table(rows)}", flush=True)
    return rows


def compared(device: torch.device) -> list[dict[str, Any]]:
    """Beside the loop over single trajectories."""
    found = [
        plain_loop.compared(Work(config, "meta-training", COMPARED_BATCH, overrides), device)
        for config, overrides in COMPARED
    ]
    print("\nMeta-training, seconds for a trajectory (how many times metaopt is faster)\n")
    print(plain_loop.table(found), flush=True)
    return [vars(comparison) | {"ratio": comparison.ratio} for comparison in found]


def broken_down(device: torch.device, matmul_flops: float) -> dict[str, Any]:
    """Where time goes, and how fast the products are by themselves: no step can be faster."""
    found, shares = {}, {}
    for config in (FLATTENED[0], COORDINATE[0]):
        work = Work(config, "meta-training", BREAKDOWN_BATCH)
        _, window, _ = trajectory_seconds(Piece(BREAKDOWN_BATCH, work), device, budget=0)
        windows = windows_within(REPEATS * BREAKDOWN_SECONDS, window, work.windows_of_trajectory)
        parts = found[work.label] = breakdown.breakdown(work, windows, device)
        shares[work.label] = breakdown.rate_of_products(work, parts, matmul_flops)
    print(f"\nWhere time goes at meta-batch {BREAKDOWN_BATCH}\n\n{breakdown.table(found, shares)}")
    return {"parts": found, "rate of products": shares}


if __name__ == "__main__":
    cli.run(main)
