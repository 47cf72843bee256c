"""What a step of ``metaopt.connect`` costs beside a step of plain training.

    python -m benchmarks.connecting [--smoke] [--device cpu|cuda|cuda:N] [--json FILE]

Plain training is SGD with momentum and weight decay as ``torch.optim.SGD`` has them, on the same
batches. Each side is one call of as many steps, all that comes before the first step included: of
``connect`` the comparison of the models and the copies of their weights. The two take turns.
Seconds are medians over the turns, and the cost is the median of the turns' ratios.

``--smoke`` takes small models, to see that it works.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import ledger, machine
from benchmarks.timing import seconds
from metaopt.base import cli
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from metaopt.landscape.between.connect import connect
from studies.output import add_device

Batches = list[tuple[Tensor, Tensor]]
DECAY, MOMENTUM, RATE = 5e-4, 0.9, 1e-3


@dataclass(frozen=True)
class Size:
    """Of the models, and of the measurement."""

    units: int  # of each of the three hidden layers of the MLP
    batch: int  # images in a batch
    models: ledger.Size  # of the residual network and the transformer
    steps: int  # in a call
    repeats: int  # calls of each side that are timed


FULL = Size(512, 128, ledger.Size(16, 16, 16, 128, 2, 64, 8, 0), steps=100, repeats=5)
SMOKE = Size(8, 4, ledger.Size(4, 8, 4, 16, 1, 8, 2, 0), steps=2, repeats=1)


@dataclass(frozen=True)
class Row:
    """One model and kind of curve."""

    model: str
    kind: str
    parameters: int
    plain: float  # seconds a step
    connected: float  # seconds a step
    ratio: float  # median over pairs


def mlp(units: int) -> nn.Module:
    """784 inputs, three hidden layers, 10 classes."""
    sizes = [784, units, units, units]
    hidden = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(*(layer for pair in hidden for layer in pair), nn.Linear(units, 10))


def plain(model: nn.Module, batches: Batches, steps: int) -> None:
    """Plain training for some steps."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    for step in range(steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of outputs of any number of axes, classes on the last."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def rows(size: Size, device: torch.device) -> list[Row]:
    """All measurements."""
    torch.manual_seed(0)
    of = size.models
    shapes: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "MLP": (lambda: mlp(size.units), (size.batch, 784)),
        "ResNet-18, narrow": (lambda: ledger.resnet(of), (of.images, 3, of.side, of.side)),
        "transformer": (lambda: ledger.transformer(of), (of.sequences, of.words, of.width)),
    }
    found = []
    for name, (make, shape) in shapes.items():
        ends = [make().to(device) for _ in range(2)]
        with torch.no_grad():
            heads = ends[0](torch.randn(2, *shape[1:], device=device)).shape[1:-1]
        batches: Batches = [
            (
                torch.randn(shape, device=device),
                torch.randint(10, (shape[0], *heads), device=device),
            )
            for _ in range(4)
        ]
        for kind in ("bezier", "chain"):
            found.append(_row(name, kind, ends, batches, size, device))
    return found


def _row(
    name: str,
    kind: str,
    ends: Sequence[nn.Module],
    batches: Batches,
    size: Size,
    device: torch.device,
) -> Row:
    model = copy.deepcopy(ends[0])

    def connected() -> None:
        connect(
            ends,
            kind=kind,
            loss=loss,
            data=batches,
            steps=size.steps,
            lr=RATE,
            weight_decay=DECAY,
        )

    pairs = []
    for number in range(size.repeats + 1):
        pair = (
            seconds(lambda: plain(model, batches, size.steps), device) / size.steps,
            seconds(connected, device) / size.steps,
        )
        # The first warms up.
        pairs += [pair] if number else []
    weights = sum(p.numel() for p in model.parameters())
    one, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    return Row(name, kind, weights, one, other, ratio)


def table(found: Sequence[Row]) -> str:
    """In Markdown."""
    header = ["model", "curve", "weights", "plain, ms a step", "connect, ms a step", "ratio"]
    cells = [
        [
            row.model,
            row.kind,
            f"{row.parameters / 1e6:.2f} M",
            f"{1e3 * row.plain:.2f}",
            f"{1e3 * row.connected:.2f}",
            f"{row.ratio:.3f}",
        ]
        for row in found
    ]
    return markdown_table(header, cells)


def main(world: World) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What a step of connect costs.")
    parser.add_argument("--smoke", action="store_true", help="small models")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    add_device(parser)
    arguments = parser.parse_args()
    device = cli.device(arguments.device, world)
    found = rows(SMOKE if arguments.smoke else FULL, device)
    print(f"{machine.measure(device).lines()}\n\n{table(found)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
