"""What a ledger adds to a training step.

    python -m benchmarks.ledger [--smoke] [--device cpu|cuda|cuda:N] [--json FILE]

A residual network of convolutions as ResNet-18 is built, and a transformer of a few million
weights, each trained by SGD with momentum and by AdamW. A step is forward, backward and
``optimizer.step()``. Two copies of each model take their steps in turns, one with a ledger that
looks at every step and one without: seconds are medians over the turns, and the cost is their
ratio. Between two comparisons with the weights (``log_every``) nothing waits for the device.

``--smoke`` takes small models, to see that it works.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import machine
from benchmarks.timing import Side, compare
from metaopt.base import cli
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from metaopt.optim.ledger import Ledger
from studies.output import add_device

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=1e-4),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-5),
}


@dataclass(frozen=True)
class Size:
    """Of the models, and of the measurement."""

    channels: int  # of the first stage; each of the three others has twice those before it
    side: int  # of an image
    images: int  # in a batch
    width: int  # of the transformer
    depth: int  # its layers
    words: int  # in a sequence
    sequences: int  # in a batch
    repeats: int  # steps of each side that are timed


FULL = Size(64, 32, 64, width=256, depth=4, words=128, sequences=32, repeats=9)
SMOKE = Size(4, 8, 2, width=16, depth=1, words=8, sequences=2, repeats=1)


@dataclass(frozen=True)
class Row:
    """One model and optimizer."""

    model: str
    optimizer: str
    parameters: int
    charges: int
    plain: float  # seconds a step
    with_ledger: float  # seconds a step


class Basic(nn.Module):
    """The block of ResNet-18: two convolutions with BatchNorm, beside a shortcut."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        stride = 1 if inputs == channels else 2
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            layer = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(layer, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        h = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(h + self.shortcut(x))


def resnet(size: Size) -> nn.Module:
    """ResNet-18 for small images."""
    channels = size.channels
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
    inputs = channels
    for stage in range(4):
        for _ in range(2):
            layers.append(Basic(inputs, channels * 2**stage))
            inputs = channels * 2**stage
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)]
    return nn.Sequential(*layers)


def transformer(size: Size) -> nn.Module:
    """Pre-norm encoder layers with ReLU units, on vectors."""
    layer = nn.TransformerEncoderLayer(
        size.width,
        max(1, size.width // 64),
        4 * size.width,
        dropout=0.0,
        batch_first=True,
        norm_first=True,
    )
    encoder = nn.TransformerEncoder(layer, size.depth, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.LayerNorm(size.width), nn.Linear(size.width, 10))


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor
) -> Callable[[], None]:
    """A step of training on one batch, as a call without arguments."""

    def run() -> None:
        optimizer.zero_grad()
        outputs = model(x).flatten(0, -2)
        targets = torch.arange(len(outputs), device=x.device) % 10
        functional.cross_entropy(outputs, targets).backward()
        optimizer.step()

    return run


def rows(size: Size, device: torch.device) -> list[Row]:
    """All measurements."""
    torch.manual_seed(0)
    models: dict[str, tuple[Callable[[Size], nn.Module], Tensor]] = {
        "ResNet-18": (resnet, torch.randn(size.images, 3, size.side, size.side)),
        "transformer": (transformer, torch.randn(size.sequences, size.words, size.width)),
    }
    found = []
    for name, (make, x) in models.items():
        for kind, optimizer_of in OPTIMIZERS.items():
            pair = [make(size).to(device) for _ in range(2)]
            optimizers = [optimizer_of(model.parameters()) for model in pair]
            ledger = Ledger(pair[1], optimizers[1], log_every=10**9)
            steps = [
                training_step(*both, x.to(device)) for both in zip(pair, optimizers, strict=True)
            ]
            sides = {key: Side(run, 1) for key, run in zip(("plain", "with"), steps, strict=True)}
            seconds = compare(sides, device, size.repeats)
            ledger.close()
            charges = sum(row["charges"] for row in ledger.rows())
            weights = sum(p.numel() for p in pair[0].parameters())
            found.append(Row(name, kind, weights, charges, seconds["plain"], seconds["with"]))
    return found


def table(found: Sequence[Row]) -> str:
    """In Markdown."""
    header = ["model", "optimizer", "weights", "charges", "ms a step", "with a ledger", "ratio"]
    cells = [
        [
            row.model,
            row.optimizer,
            f"{row.parameters / 1e6:.2f} M",
            str(row.charges),
            f"{1e3 * row.plain:.1f}",
            f"{1e3 * row.with_ledger:.1f}",
            f"{row.with_ledger / row.plain:.3f}",
        ]
        for row in found
    ]
    return markdown_table(header, cells)


def main(world: World) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What a ledger adds to a training step.")
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
