"""The shipped mini-batch rule in a user's loop, on networks that no meta-training saw.

    python -m studies.drop_in_training [--smoke] [--rule FILE] [--json FILE] [--write-page]

Digits of scikit-learn, cross-entropy, mini-batches of 32, with ``LearnedOptimizer(model, path)`` as
it is (``lr`` 1, no schedule), beside ``torch.optim.Adam`` with the best learning rate of a grid for
each column by itself, chosen on the very runs that are shown. All see the same mini-batches from
the same initial weights; two thirds of the digits are trained on, those of the last third judge.
Figures are geometric means over seeds of the test loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from metaopt import LearnedOptimizer
from metaopt.base import cli
from metaopt.base.loss_statistics import geomean
from metaopt.base.process import World
from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from metaopt.tasks.images import Images
from studies.output import DOCS, PRETRAINED, Page

PAGE = Page(DOCS / "digits.md", "drop-in training table", "drop_in_training")
RULE = PRETRAINED / "digits_update_tele.safetensors"
LEARNED = "learned, lr 1"
BATCH = 32
SIDE = 8


class Transformer(nn.Module):
    """Eight tokens, the rows of an image, through one layer of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, 32)
        self.place = nn.Parameter(torch.zeros(SIDE, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10] of images [N, 64]."""
        tokens = self.embed(x.unflatten(1, (SIDE, SIDE))) + self.place
        return self.head(self.layer(tokens).mean(1))


def perceptron() -> nn.Module:
    """Three layers."""
    widths = (nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    return nn.Sequential(*widths)


def convolutional() -> nn.Module:
    """Two convolutions, one with a normalisation behind it."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "3 layers, 100 and 50 units": perceptron,
    "convolutions and BatchNorm": convolutional,
    "a transformer": Transformer,
}


@dataclass(frozen=True)
class Size:
    """Of the measurement."""

    marks: tuple[int, ...]  # inner steps at which models are judged; the last one ends a run
    seeds: int  # runs of each
    rates: tuple[float, ...]  # learning rates of Adam


FULL = Size((20, 100, 300, 1000), 5, (0.001, 0.002, 0.005, 0.01))
SMOKE = Size((2, 4), 2, (0.01,))


@dataclass(frozen=True)
class Row:
    """One optimizer on one model."""

    model: str  # its name
    optimizer: str  # its name
    losses: list[float]  # test loss at each mark, the geometric mean over seeds
    largest: float  # of any seed at the last mark


def train(
    make: Callable[[], nn.Module],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    data: Images,
    marks: Sequence[int],
    seed: int,
) -> list[float]:
    """Test loss at each mark: the user's loop."""
    (X, y), seen = data.shared, data.seen
    draws = item_generator(Stream.TEST, seed, 0)
    torch.manual_seed(seed)
    model = make()
    opt = optimizer(model)
    losses = []
    for step in range(1, marks[-1] + 1):
        rows = torch.from_numpy(draws.integers(seen, size=BATCH))
        opt.zero_grad()
        functional.cross_entropy(model(X[rows]), y[rows]).backward()
        opt.step()
        if step in marks:
            model.eval()
            with torch.no_grad():
                losses.append(float(functional.cross_entropy(model(X[seen:]), y[seen:])))
            model.train()
    return losses


def rows(size: Size, rule: Path) -> list[Row]:
    """All runs, a model after the other."""
    data = Images(width=1)
    optimizers: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        LEARNED: lambda model: LearnedOptimizer(model, rule)
    }
    for rate in size.rates:
        optimizers[f"Adam {rate:g}"] = lambda model, rate=rate: torch.optim.Adam(  # type: ignore[misc]
            model.parameters(), lr=rate
        )
    found = []
    jobs = [(model, name) for model in MODELS for name in optimizers]
    for model, name in tqdm(jobs, desc="training"):
        curves = np.array(
            [
                train(MODELS[model], optimizers[name], data, size.marks, seed)
                for seed in range(size.seeds)
            ]
        )
        losses = geomean(curves.T).tolist()
        found.append(Row(model, name, losses, float(curves[:, -1].max())))
    return found


def table(found: Sequence[Row], size: Size) -> str:
    """Each model's learned optimizer, and the best Adam for each column."""
    header = ["model", "optimizer", *map(str, size.marks), "worst seed at the last"]
    lines = []
    for model in dict.fromkeys(row.model for row in found):
        of_model = [row for row in found if row.model == model]
        learned = next(row for row in of_model if row.optimizer == LEARNED)
        adams = [row for row in of_model if row is not learned]
        lines.append([model, LEARNED, *_numbers(learned.losses), f"{learned.largest:.3g}"])
        best = [min(adams, key=lambda row: row.losses[i]) for i in range(len(size.marks))]
        cells = [
            f"{row.losses[i]:.3g} ({row.optimizer.removeprefix('Adam ')})"
            for i, row in enumerate(best)
        ]
        lines.append([model, "Adam, best rate of each column", *cells, f"{best[-1].largest:.3g}"])
    return markdown_table(header, lines)


def _numbers(losses: Sequence[float]) -> list[str]:
    return [f"{loss:.3g}" for loss in losses]


def main(world: World) -> None:
    """Train, print, write the page."""
    parser = argparse.ArgumentParser(description="The mini-batch rule on models of other kinds.")
    parser.add_argument("--rule", type=Path, default=RULE, metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="few steps, two seeds")
    arguments = PAGE.parse(parser)
    size = SMOKE if arguments.smoke else FULL
    found = rows(size, arguments.rule)
    text = f"{size.seeds} seeds\n\n{table(found, size)}"
    PAGE.tell(arguments, text, [asdict(row) for row in found])


if __name__ == "__main__":
    cli.run(main)
