"""Seconds and peak memory of ``metaopt.align`` on a ResNet-18 with BatchNorm of 11 M parameters.

Two networks with random weights: the second is once the first, moved by the symmetries that are
found, so that the answer is known, and once another one. The finder is timed by itself. Memory is
the peak resident set (Linux, glibc) above what is in use with both models loaded; the copy of b
that moves counts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metaopt
from benchmarks.memory import in_use, peak_bytes
from metaopt.landscape.between.align import By

CPU = torch.device("cpu")


class _Block(nn.Module):
    """Two convolutions, added to what came in."""

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        same = stride == 1 and fan_in == width
        self.beside = (
            nn.Sequential()
            if same
            else nn.Sequential(
                nn.Conv2d(fan_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.beside(x))


class ResNet18(nn.Module):
    """ResNet-18 for small images.

    Args:
        width: channels of the first stage.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks, fan_in = [], width
        for stage in range(4):
            for block in range(2):
                out = width * 2**stage
                blocks.append(_Block(fan_in, out, 2 if stage and not block else 1))
                fan_in = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(fan_in, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images [N, 3, H, W]."""
        return self.head(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


def main() -> None:
    """Print a line for each way of aligning."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--json", type=Path, help="write the figures to a file, too")
    asked = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")
    torch.manual_seed(0)
    a, other = ResNet18(asked.width).eval(), ResNet18(asked.width).eval()
    count = sum(p.numel() for p in a.parameters())
    start = time.perf_counter()
    found = metaopt.symmetries(a, permutations=True)
    finding = time.perf_counter() - start
    print(f"{count / 1e6:.1f} M parameters, {len(found)} symmetries found in {finding:.1f} s")
    planted = deepcopy(a)
    metaopt.teleport(planted, norm=1.0, seed=1, symmetries=found)
    pair = (torch.randn(64, 3, 16, 16), torch.zeros(64, dtype=torch.int64))
    rows: list[dict[str, Any]] = []
    ways: tuple[By, ...] = ("weights", "activations", "orbit")
    for name, b in (("planted", planted), ("another", other)):
        for by in ways:
            data: dict[str, Any] = {"data": pair} if by == "activations" else {}
            row = _row(partial(metaopt.align, a, b, by, symmetries=found, **data))
            rows.append({"b": name, "by": by, "finding": finding, **row})
            print(
                f"{name} by {by}: {row['seconds']:.1f} s, {row['bytes'] / 2**20:.0f} MiB, "
                f"{row['sweeps']} sweeps, distance {row['before']:.4g} -> {row['after']:.4g}"
            )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _row(run: Callable[[], Any]) -> dict[str, Any]:
    """Seconds, peak memory and what was reported of one alignment."""
    reports: list[metaopt.AlignReport] = []
    peak, took = peak_bytes(lambda: reports.append(run()[1]), CPU, in_use(CPU))
    report = reports[0]
    return {
        "seconds": took,
        "bytes": peak,
        "sweeps": report.sweeps,
        "before": report.before,
        "after": report.after,
    }


if __name__ == "__main__":
    main()
