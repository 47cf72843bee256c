"""What is trained: networks of ``drop_in_training`` wider and longer, other data, larger ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from metaopt.tasks.image_networks import two_layers
from metaopt.tasks.various_transformers import Blocks, TokenReader
from studies.carry.data import BYTES, CONTEXT, PIXELS, digits, other_images, resized, text
from studies.drop_in_training import BATCH, MODELS, SIDE
from studies.images import data_sets
from studies.rivals.contenders import COSINE, FREE, SOAP
from studies.rivals.networks import perceptron
from studies.rivals.tasks import Task

WINDOWS = 8
"""Of a mini-batch of text."""


@dataclass(frozen=True)
class Setting:
    """What is trained, how far, and beside whom.

    Attributes:
        task: the network, its data and its loss.
        marks: steps at which runs are judged; the last one ends a run.
        told: marks that a cosine is told, with a run for each; what is judged before is on its way
            to the next of them.
        rates: those that each rival tries.
        seeds: runs of each.
    """

    task: Task
    marks: tuple[int, ...]
    told: tuple[int, ...]
    rates: Rates
    seeds: int

    def horizon(self, mark: int) -> int:
        """What a cosine is told that is judged at this mark."""
        return next(told for told in self.told if told >= mark)


@dataclass(frozen=True)
class Size:
    """Of the measurement.

    Attributes:
        marks: of most settings.
        far: of those of many steps.
        large: of the two large networks.
        seeds: of all but these two.
        rates: tried by each rival, at most.
        factor: on widths.
        channels: of the large CNN's first convolution, and units of its hidden layer.
        width: of a token of the language model, and how many layers it has.
        judged: rows that judge, at most.
    """

    marks: tuple[int, ...]
    far: tuple[int, ...]
    large: tuple[int, ...]
    seeds: int
    rates: int
    factor: int
    channels: tuple[int, int]
    width: tuple[int, int]
    judged: int


FULL = Size(
    marks=(20, 100, 300, 1000),
    far=(100, 1000, 3000, 10_000),
    large=(20, 100, 300, 1000, 2000),
    seeds=3,
    rates=4,
    factor=10,
    channels=(64, 448),
    width=(256, 4),
    judged=600,
)
SMOKE = Size((2, 4), (2, 6), (1, 3), 2, 1, 1, (2, 8), (16, 1), 20)

Rates = Mapping[str, tuple[float, ...]]
WIDE: Rates = {COSINE: (3e-3, 1e-3, 1e-2, 3e-2), FREE: (1e-2, 3e-3, 3e-2)}
"""Rates that rivals try, by their names, the likeliest first."""
WIDE_AND_CHEAP: Rates = {**WIDE, SOAP: (3e-3, 1e-3, 1e-2)}
FAR: Rates = {COSINE: (3e-3, 1e-3, 1e-2)}
CNN: Rates = {COSINE: (1e-3, 3e-3, 3e-4), FREE: (3e-3,)}
TEXT: Rates = {COSINE: (1e-3, 3e-3, 3e-4)}


def convolutional(channels: int, hidden: int) -> nn.Module:
    """Two convolutions with BatchNorm, a hidden layer, ten classes of images [N, 1, 16, 16]."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * (PIXELS // 4) ** 2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def language_model(width: int, layers: int) -> nn.Module:
    """A causal transformer over bytes, norms first, four heads: logits [N, 64, 256]."""
    blocks = Blocks(width, 4, 4 * width, layers, True, True, init="small_tables", causal=True)
    return TokenReader(BYTES, CONTEXT, blocks, BYTES)


def numbers(task: Task) -> int:
    """Parameters of a network."""
    return sum(p.numel() for p in task.make().parameters())


def settings(size: Size, fashion: Path) -> tuple[list[Setting], list[str]]:
    """All of a size, those that take longest first, and a line for each that is left out.

    Args:
        size: of the measurement.
        fashion: the folder of Fashion-MNIST's IDX files.
    """
    there, missing = data_sets(fashion, smoke=False)
    own = partial(digits, size.judged)
    other = {
        name: partial(other_images, name, fashion, size.judged)
        for name in there
        if name != "digits"
    }
    source, images = next(iter(other.items()), ("digits", own))

    def setting(
        task: Task, marks: tuple[int, ...], rates: Rates, told: tuple[int, ...], seeds: int
    ) -> Setting:
        tried = {name: own[: size.rates] for name, own in rates.items()}
        return Setting(task, marks, told, tried, seeds)

    def on_digits(name: str, about: str, make: Callable[[], nn.Module]) -> Task:
        return Task(name, f"{about}, digits", make, own, batch=BATCH)

    widths = [32 * size.factor, 100 * size.factor, 50 * size.factor]
    text_model = Task(
        "language model",
        "a causal transformer with norms first, bytes of Python's documentation strings",
        partial(language_model, *size.width),
        partial(text, size.judged),
        batch=WINDOWS,
    )
    cnn = Task(
        "large CNN",
        f"two convolutions with BatchNorm and a hidden layer, {source} at 16 by 16 pixels",
        partial(convolutional, *size.channels),
        partial(resized, images),
        batch=BATCH,
    )
    two = on_digits(
        "two wide layers",
        f"64-{widths[0]}-10, LeakyReLU",
        partial(two_layers, SIDE**2, widths[0], 10),
    )
    three = on_digits(
        "three wide layers",
        f"64-{widths[1]}-{widths[2]}-10, ReLU",
        partial(perceptron, [SIDE**2, *widths[1:], 10], nn.ReLU),
    )
    of_others = {
        name: Task(
            f"{name}, three layers",
            "784-100-50-10, ReLU, a sample of 5,000 images",
            partial(perceptron, [784, 100, 50, 10], nn.ReLU),
            parts,
            batch=BATCH,
        )
        for name, parts in other.items()
    }
    last = size.large[-1:]
    found = [
        setting(text_model, size.large, TEXT, last, 1),
        setting(cnn, size.large, CNN, last, 1),
        setting(three, size.marks, WIDE, size.marks, size.seeds),
    ]
    for name, make in MODELS.items():
        task = on_digits(f"{name}; far", "that of `studies.drop_in_training`", make)
        found.append(setting(task, size.far, FAR, size.far[-1:], size.seeds))
    for task in of_others.values():
        found.append(setting(task, size.marks, WIDE, size.marks, size.seeds))
    found.append(setting(two, size.marks, WIDE_AND_CHEAP, size.marks, size.seeds))
    return found, missing
