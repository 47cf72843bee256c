"""What is trained: the networks of ``drop_in_training`` wider and longer, other data, larger ones."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.base.streams import Stream, item_generator
from metaopt.tasks.datasets import Labelled
from metaopt.tasks.image_networks import two_layers
from metaopt.tasks.images import digits_apart
from metaopt.tasks.various_corpus import documentation
from metaopt.tasks.various_transformers import Blocks, TokenReader
from studies.drop_in_training import BATCH, MODELS, SIDE
from studies.images import data_sets
from studies.rivals.contenders import COSINE, FREE, SOAP
from studies.rivals.data import Parts, Rows
from studies.rivals.networks import perceptron
from studies.rivals.tasks import Task

MODULES = (
    "abc array asyncio.base_events asyncio.events asyncio.locks asyncio.streams asyncio.tasks "
    "asyncio.transports bdb builtins bz2 code compileall ctypes doctest fileinput ftplib getopt "
    "gzip hashlib http.client http.cookiejar http.server imaplib importlib.abc importlib.metadata "
    "io ipaddress locale mimetypes multiprocessing.managers optparse os pathlib pdb pickletools "
    "pkgutil platform profile pydoc selectors site smtplib socket socketserver ssl tarfile time "
    "typing urllib.request wsgiref.handlers wsgiref.simple_server xmlrpc.client xmlrpc.server zlib"
).split()
"""Of Python; meta-training has read none of their texts."""
APART = 5
"""Every fifth of them is not trained on, and judges."""
BYTES = 256
CONTEXT = 64
WINDOWS = 8
"""Of a mini-batch of text."""
SEED = 19
PIXELS = 16
"""Of a side of the larger network's images."""


@dataclass(frozen=True)
class Setting:
    """What is trained, how far, and beside whom.

    Attributes:
        task: the network, its data and its loss.
        marks: steps at which runs are judged; the last one ends a run.
        told: marks that a cosine is told, with a run for each; marks between are those on the way
            to the next.
        rates: those that each rival tries, by its name.
        seeds: runs of each.
    """

    task: Task
    marks: tuple[int, ...]
    told: tuple[int, ...]
    rates: Mapping[str, tuple[float, ...]]
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
        channels: of the first convolution, and units of the hidden layer.
        width: of a token of the language model, and its layers.
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

SMALL: dict[str, tuple[float, ...]] = {
    COSINE: (3e-3, 1e-3, 1e-2, 3e-2),
    FREE: (1e-2, 3e-3, 3e-2),
    SOAP: (3e-3, 1e-3, 1e-2),
}
"""Rates that are tried on small networks, the likeliest first."""
LARGE: dict[str, tuple[float, ...]] = {COSINE: (1e-3, 3e-3, 3e-4), FREE: (3e-3,)}


def _parts(train: Labelled, test: Labelled, judged: int) -> Parts:
    """Nothing is chosen by other rows than those that are shown: there are none for validation."""
    X, y = test.X[:judged], test.y[:judged]
    return Parts(Rows(train.X, train.y), Rows(X[:0], y[:0]), Rows(X, y))


@cache
def digits(judged: int) -> Parts:
    """scikit-learn's digits; a third that no meta-training has read judges."""
    return _parts(*digits_apart(), judged)


@cache
def other_images(name: str, fashion: Path, judged: int) -> Parts:
    """MNIST, or Fashion-MNIST, of which there is a sample of 5,000."""
    found = data_sets(fashion, smoke=False)[0][name]
    return _parts(found.train, found.test, judged)


def resized(parts: Parts) -> Parts:
    """Of 16 by 16 pixels, [N, 1, 16, 16]."""

    def one(rows: Rows) -> Rows:
        side = round(rows.x.shape[1] ** 0.5)
        x = rows.x.view(-1, 1, side, side)
        size = (PIXELS, PIXELS)
        return Rows(functional.interpolate(x, size, mode="bilinear", antialias=True), rows.y)

    # Nothing is to be resized of no rows.
    return Parts(one(parts.train), parts.validation, one(parts.test))


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


@cache
def _texts() -> tuple[str, str]:
    """What is trained on, and what judges: of other modules."""
    apart = MODULES[::APART]
    return documentation([name for name in MODULES if name not in apart]), documentation(apart)


@cache
def text(judged: int) -> Parts:
    """Windows of 64 bytes, and at each place the byte that follows."""

    def windows(text: str) -> Rows:
        found = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
        count = (len(found) - 1) // CONTEXT
        cut = found[: count * CONTEXT], found[1 : count * CONTEXT + 1]
        return Rows(*(part.view(count, CONTEXT) for part in cut))

    train, apart = map(windows, _texts())
    order = item_generator(Stream.SPLIT, SEED, 0).permutation(len(apart.x))[: judged // 4]
    return Parts(train, Rows(apart.x[:0], apart.y[:0]), Rows(apart.x[order], apart.y[order]))


def about_text() -> str:
    """What was read, so that another text is told apart."""
    train, apart = _texts()
    digest = hashlib.sha256((train + apart).encode()).hexdigest()[:12]
    return (
        f"Text: documentation strings of Python {platform.python_version()}, {len(train):,} "
        f"characters to train on, {len(apart):,} of other modules, SHA-256 {digest}."
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

    def rates(of: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        return {name: own[: size.rates] for name, own in of.items()}

    def large(task: Task) -> Setting:
        return Setting(task, size.large, size.large[-1:], rates(LARGE), 1)

    def small(task: Task, marks: tuple[int, ...]) -> Setting:
        return Setting(task, marks, marks, rates(SMALL), size.seeds)

    wide = [32 * size.factor, 100 * size.factor, 50 * size.factor]
    found = [
        large(
            Task(
                "language model",
                "a causal transformer with norms first, bytes of Python's documentation strings",
                partial(language_model, *size.width),
                partial(text, size.judged),
                batch=WINDOWS,
            )
        ),
        large(
            Task(
                "large CNN",
                f"two convolutions with BatchNorm and a hidden layer, {source} at 16 by 16 pixels",
                partial(convolutional, *size.channels),
                lambda: resized(images()),
                batch=BATCH,
            )
        ),
        small(
            Task(
                "three wide layers",
                f"64-{wide[1]}-{wide[2]}-10, ReLU, digits",
                partial(perceptron, [SIDE**2, *wide[1:], 10], nn.ReLU),
                own,
                batch=BATCH,
            ),
            size.marks,
        ),
    ]
    found += [
        small(Task(f"{name}; far", "digits, ten times the steps", make, own, batch=BATCH), size.far)
        for name, make in MODELS.items()
    ]
    found += [
        small(
            Task(
                f"{name}, three layers",
                "784-100-50-10, ReLU, a sample of 5,000 images",
                partial(perceptron, [784, 100, 50, 10], nn.ReLU),
                parts,
                batch=BATCH,
            ),
            size.marks,
        )
        for name, parts in other.items()
    ]
    two = Task(
        "two wide layers",
        f"64-{wide[0]}-10, LeakyReLU, digits",
        partial(two_layers, SIDE**2, wide[0], 10),
        own,
        batch=BATCH,
    )
    return [*found, small(two, size.marks)], missing
