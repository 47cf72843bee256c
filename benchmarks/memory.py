"""Peak memory of one window (meta-training) or ten steps (evaluation), in a process of its own.

    python -m benchmarks.memory --config paper/lstm_update_tele.yaml --mode meta-training 1 16 64

Prints a JSON object a line: ``batch``, ``peak_bytes``, ``seconds``.

On the CPU it is the largest resident set (VmHWM, reset before each batch; Linux) above that of the
process before any trainer was made: networks, gradients, Adam's means and tasks count, Python and
torch do not. The process is started with glibc's MALLOC_MMAP_THRESHOLD_ at 1 MiB, so that larger
tensors return to the system once they are freed, and what is resident is in use. That makes it
slow: ``seconds`` serves to predict, not to compare. On CUDA it is
``torch.cuda.max_memory_allocated``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from benchmarks.limits import Cost, too_much
from benchmarks.timing import seconds
from benchmarks.work import Mode, Work

STATUS = Path("/proc/self/status")
ROOT = Path(__file__).resolve().parent.parent


def measured(
    config: str,
    mode: Mode,
    batches: Sequence[int],
    device: torch.device,
    overrides: Sequence[str] = (),
) -> dict[int, Cost]:
    """Cost by batch, from a fresh process; sizes past the limits are left out."""
    command = [sys.executable, "-m", "benchmarks.memory", "--config", config, "--mode", mode]
    command += ["--device", str(device)]
    command += [argument for override in overrides for argument in ("--set", override)]
    command += list(map(str, batches))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    lines = subprocess.run(
        command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    rows = map(json.loads, lines)
    return {row["batch"]: Cost(row["batch"], row["seconds"], row["peak_bytes"]) for row in rows}


def peak_bytes(run: Callable[[], object], device: torch.device, base: int) -> tuple[int, float]:
    """(peak above ``base``, seconds) of one call."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        took = seconds(run, device)
        return torch.cuda.max_memory_allocated(device) - base, took
    Path("/proc/self/clear_refs").write_text("5")
    took = seconds(run, device)
    return _resident("VmHWM") - base, took


def in_use(device: torch.device) -> int:
    """Bytes in use now."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _resident("VmRSS")


def _resident(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS}: no {field}; peak memory on the CPU is measured on Linux only")


def _once(work: Work, device: torch.device) -> None:
    work.ready(1, device)()


def main() -> None:
    """Measure batches in ascending order, a line each."""
    parser = argparse.ArgumentParser(description="Peak memory by meta-batch.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--mode", choices=get_args(Mode), default="meta-training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("batches", type=int, nargs="+")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)

    def work(batch: int) -> Work:
        return Work(arguments.config, arguments.mode, batch, tuple(arguments.overrides))

    # Libraries take their own buffers at the first call.
    _once(work(1), device)
    base = in_use(device)
    costs: list[Cost] = []
    for batch in sorted(arguments.batches):
        if too_much(costs, batch) is not None:
            break
        peak, took = peak_bytes(partial(_once, work(batch), device), device, base)
        costs.append(Cost(batch, took, peak))
        print(json.dumps({"batch": batch, "peak_bytes": peak, "seconds": took}), flush=True)


if __name__ == "__main__":
    main()
