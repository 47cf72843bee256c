"""Peak memory of pieces of work, in a process of its own.

On the CPU it is the largest resident set (VmHWM, reset before each piece; Linux with glibc) above
that of the process without a trainer: networks, gradients, Adam's means and tasks count, Python and
torch do not. The process is started with glibc's MALLOC_MMAP_THRESHOLD_ at 1 MiB, so that larger
tensors return to the system once they are freed, and what is resident is in use. That makes it
slow: its seconds serve to predict, not to compare. On CUDA it is
``torch.cuda.max_memory_allocated``.

The process is ``python -m benchmarks.memory``, started by ``sweep.measured``: it reads the pieces
as JSON from standard input and prints a ``Cost`` a line.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.sweep import Cost, Piece, Work, too_much
from benchmarks.timing import seconds

STATUS = Path("/proc/self/status")


def peak_bytes(run: Callable[[], object], device: torch.device, base: int) -> tuple[int, float]:
    """(peak above ``base``, seconds) of one call."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        took = seconds(run, device)
        return torch.cuda.max_memory_allocated(device) - base, took
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    took = seconds(run, device)
    return _resident("VmHWM") - base, took


def in_use(device: torch.device) -> int:
    """Bytes in use now, freed ones returned to the system."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)
    return _resident("VmRSS")


def _resident(field: str) -> int:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS}: no {field}; peak memory on the CPU is measured on Linux only")


def main() -> None:
    """Measure the pieces that are ordered, a line each."""
    order = json.load(sys.stdin)
    device = torch.device(order["device"])
    pieces = [Piece(**item | {"work": Work(**item["work"])}) for item in order["pieces"]]
    # Libraries take their own buffers at the first call.
    pieces[0].work.ready(pieces[0].windows, device)()
    base = in_use(device)
    costs: list[Cost] = []
    for piece in pieces:
        in_groups = piece.work.in_groups(device)
        if too_much(costs, piece.size, order["power"], in_groups) is not None:
            break

        def run(piece: Piece = piece) -> None:
            piece.work.ready(piece.windows, device)()

        peak, took = peak_bytes(run, device, base)
        costs.append(Cost(piece.size, took, peak))
        print(json.dumps(asdict(costs[-1])), flush=True)


if __name__ == "__main__":
    main()
