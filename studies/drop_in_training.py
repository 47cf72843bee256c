"""Learned rules in a user's loop, on networks that no meta-training saw, beside what is tuned.

    python -m studies.drop_in_training [--smoke] [--rules NAME ...] [--record] [--json FILE]
                                       [--write-page]

Digits of scikit-learn, cross-entropy, mini-batches of 32. Learned rules are as they are (``lr`` 1,
no schedule, told nothing). Rivals are those of ``studies.rivals``, with the best of five rates *for
each column by itself*, chosen on the very runs that are shown; a cosine is told the column's step.
All see the same mini-batches from the same initial weights; two thirds of the digits are trained
on, those of the last third judge, at averaged weights where an optimizer has them. Figures are
geometric means over seeds of the test loss. ``--record`` writes into the file of the default rule
how far it was tested, where every run of it held: its loss at the last mark is not above the first.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.loss_statistics import geomean
from metaopt.base.process import World
from metaopt.base.shipped import DEFAULT
from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from metaopt.optim.reach import PastHorizonWarning, record_test
from metaopt.tasks.image_networks import two_layers
from metaopt.tasks.images import Images
from studies.output import DOCS, PRETRAINED, Page
from studies.rivals.contenders import (
    ADAMW,
    COSINE,
    FREE,
    MUON,
    SOAP,
    Contender,
    everyone,
)
from studies.rivals.data import Rows
from studies.rivals.training import Start, follow

PAGE = Page(DOCS / "general.md", "drop-in training table", "drop_in_training")
RULES = (DEFAULT, "digits_update_tele")
RIVALS = (ADAMW, COSINE, FREE, SOAP, MUON)
BARS = (COSINE, FREE, SOAP)
"""What a default rule has to keep up with, each tuned on the very column."""
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
    "two layers, 32 units": lambda: two_layers(SIDE**2, 32, 10),
    "3 layers, 100 and 50 units": perceptron,
    "convolutions and BatchNorm": convolutional,
    "a transformer": Transformer,
}


@dataclass(frozen=True)
class Size:
    """Of the measurement."""

    marks: tuple[int, ...]  # inner steps at which models are judged; the last one ends a run
    seeds: int  # runs of each
    rates: int  # tried for each rival, at most


FULL = Size((20, 100, 300, 1000), 3, 5)
SMOKE = Size((2, 4), 2, 1)


@dataclass(frozen=True)
class Row:
    """One optimizer at one rate on one model."""

    model: str  # its name
    optimizer: str  # its name
    learned: bool
    rate: float
    losses: list[list[float]]  # test loss at each mark, of each seed


def train(
    make: Callable[[], nn.Module],
    contender: Contender,
    rate: float,
    data: Images,
    marks: Sequence[int],
    seed: int,
) -> list[float]:
    """Test loss at each mark: the user's loop.

    Args:
        make: the model, with fresh weights of torch's global generator.
        contender: the optimizer.
        rate: its rate.
        data: whose first images are trained on and whose others judge.
        marks: inner steps, the last of which ends the run.
        seed: of initial weights and mini-batches.
    """
    (X, y), seen = data.shared, data.seen
    draws = item_generator(Stream.TEST, seed, 0)
    batches = np.stack([draws.integers(seen, size=BATCH) for _ in range(marks[-1])])
    torch.manual_seed(seed)
    begun = Start(make(), torch.from_numpy(batches))
    trainer = contender.trainer(begun.model, rate, marks[-1])
    train, apart = Rows(X[:seen], y[:seen]), Rows(X[seen:], y[seen:])
    return follow(begun, trainer, functional.cross_entropy, train, apart, marks)


def rows(size: Size, contenders: Sequence[Contender]) -> list[Row]:
    """All runs, a model after the other."""
    data = Images(width=1)
    found = []
    jobs = [(m, c, rate) for m in MODELS for c in contenders for rate in c.grid[: size.rates]]
    bar = tqdm(jobs, desc="training")
    for model, contender, rate in bar:
        bar.set_postfix_str(f"{model}: {contender.name} {rate:g}")
        # Told its step, an optimizer has a run of its own for each column.
        columns = [[mark] for mark in size.marks] if contender.told else [list(size.marks)]
        curves = [
            [
                loss
                for marks in columns
                for loss in train(MODELS[model], contender, rate, data, marks, seed)
            ]
            for seed in range(size.seeds)
        ]
        losses = np.array(curves).T.tolist()
        found.append(Row(model, contender.name, contender.learned, rate, losses))
    return found


def means(row: Row) -> list[float]:
    """The geometric mean over seeds at each mark."""
    return geomean(np.array(row.losses)).tolist()


def best(found: Sequence[Row], names: Sequence[str], column: int) -> Row:
    """The row of these optimizers with the smallest mean at a mark."""
    return min((row for row in found if row.optimizer in names), key=lambda row: means(row)[column])


def table(found: Sequence[Row], size: Size) -> str:
    """Each model's learned rules, and each rival at its best rate of each column."""
    header = ["model", "optimizer", *map(str, size.marks)]
    columns = range(len(size.marks))
    lines = []
    for model in dict.fromkeys(row.model for row in found):
        of_model = [row for row in found if row.model == model]
        for name in dict.fromkeys(row.optimizer for row in of_model):
            chosen = [best(of_model, [name], i) for i in columns]
            cells = [f"{means(row)[i]:.3g}" for i, row in enumerate(chosen)]
            if not chosen[0].learned:
                cells = [f"{c} ({row.rate:g})" for c, row in zip(cells, chosen, strict=True)]
            lines.append([model, name, *cells])
    return markdown_table(header, lines)


def ratios(found: Sequence[Row], size: Size) -> str:
    """Learned rules over the best of ``BARS``, each at its best rate: mean and range of seeds."""
    header = ["model", "rule", *map(str, size.marks)]
    lines = []
    for model in dict.fromkeys(row.model for row in found):
        of_model = [row for row in found if row.model == model]
        rivals = [name for name in BARS if any(row.optimizer == name for row in of_model)]
        for row in of_model:
            if not row.learned or not rivals:
                continue
            cells = []
            for i in range(len(size.marks)):
                to = np.array(best(of_model, rivals, i).losses[i])
                each = np.array(row.losses[i]) / to
                cells.append(
                    f"{np.exp(np.log(each).mean()):.3g} ({each.min():.3g} to {each.max():.3g})"
                )
            lines.append([model, row.optimizer, *cells])
    return markdown_table(header, lines)


def held(found: Sequence[Row], name: str) -> bool:
    """Whether no run of a rule ends above its loss at the first mark, or in no number at all."""
    own = [np.array(row.losses) for row in found if row.optimizer == name]
    return bool(own) and all((losses[-1] <= losses[0]).all() for losses in own)


def main(world: World) -> None:
    """Train, print, write the page."""
    parser = argparse.ArgumentParser(description="Learned rules on models of other kinds.")
    parser.add_argument("--rules", nargs="*", default=[*RULES], metavar="NAME")
    parser.add_argument("--smoke", action="store_true", help="few steps, two seeds")
    parser.add_argument("--record", action="store_true", help="how far it held, into the file")
    arguments = PAGE.parse(parser)
    size = SMOKE if arguments.smoke else FULL
    everybody, missing = everyone(arguments.rules)
    contenders = [one for one in everybody if one.learned or one.name in RIVALS]
    # It is said in the text how far rules were meta-trained.
    warnings.simplefilter("ignore", PastHorizonWarning)
    found = rows(size, contenders)
    text = "\n\n".join(
        [
            f"{size.seeds} seeds, geometric means of the test loss; in brackets the rate",
            table(found, size),
            f"Ratios to the best of {', '.join(BARS)} at the column, the mean and the range of "
            f"seeds:",
            ratios(found, size),
            *missing,
        ]
    )
    PAGE.tell(arguments, text, [asdict(row) for row in found])
    if arguments.record:
        if size is SMOKE or not held(found, DEFAULT):
            raise UserError(f"--record: {DEFAULT} was not run far enough, or did not hold")
        path = PRETRAINED / f"{DEFAULT}.safetensors"
        print(record_test(path, size.marks[-1], "python -m studies.drop_in_training"))


if __name__ == "__main__":
    cli.run(main)
