"""Shifts of image data that adapters adapt to.

    x -> a P x + b + sigma noise,   y -> Q y,   P, Q permutations of pixels and of labels

Those of meta-training:

    turn       mirror (two), transpose, anti-transpose, turn by 180 degrees, or none
    move       roll by pixels, permutation of rows, permutation of columns, or none
    contrast   1 - x, or a x + b with a of either sign, or none
    labels     a permutation, or none
    noise      sigma in [0, 0.3], the same noise at each sight of an image, or none

The shift of tests is a turn by 90 degrees together with 1 - x. No shift of meta-training turns by
90 or 270 degrees: such a turn exchanges rows and columns and mirrors once, and what exchanges them
here, a transpose or an anti-transpose, is followed by nothing but a roll.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Places = NDArray[np.int64]
"""The place [side, side] from which each pixel is taken."""

TURNS: dict[str, Callable[[Places], Places]] = {
    "none": lambda places: places,
    "left-right": lambda places: places[:, ::-1],
    "up-down": lambda places: places[::-1],
    "half": lambda places: places[::-1, ::-1],
    "transpose": lambda places: places.T,
    "anti-transpose": lambda places: places[::-1, ::-1].T,
}
_EXCHANGES = ("transpose", "anti-transpose")
_CONTRAST, _OFFSET, _NOISE = (0.4, 1.5), 0.2, 0.3


@dataclass(frozen=True)
class Shift:
    """One shift.

    Attributes:
        pixels: for each pixel the one that it is taken from, int64 [n].
        labels: the new label of each class, int64 [classes].
        slope: a.
        offset: b.
        noise: sigma.
    """

    pixels: Tensor
    labels: Tensor
    slope: float
    offset: float
    noise: float

    def images(self, X: Tensor, generator: np.random.Generator) -> Tensor:
        """Images [N, n], shifted; the noise is drawn from the generator."""
        moved = self.slope * X[:, self.pixels] + self.offset
        if self.noise == 0:
            return moved
        drawn = generator.standard_normal(tuple(X.shape), dtype=np.float32)
        return moved + self.noise * torch.from_numpy(drawn)


def of_training(generator: np.random.Generator, side: int, classes: int) -> Shift:
    """A random shift of meta-training: a turn or a move at least, the others now and then.

    Args:
        generator: the source of randomness.
        side: the number of rows, and of columns, of an image.
        classes: the number of labels.
    """
    turn = str(generator.choice(list(TURNS)))
    moves = ["roll"] if turn in _EXCHANGES else ["roll", "rows", "columns"]
    if turn != "none":
        moves = ["none"] * len(moves) + moves
    places = TURNS[turn](np.arange(side**2).reshape(side, side))
    match str(generator.choice(moves)):
        case "roll":
            by = generator.integers(1, side, size=2)
            places = np.roll(places, (int(by[0]), int(by[1])), axis=(0, 1))
        case "rows":
            places = places[generator.permutation(side)]
        case "columns":
            places = places[:, generator.permutation(side)]
    slope, offset = _contrast(generator)
    labels = np.arange(classes)
    if generator.random() < 0.25:
        labels = generator.permutation(classes)
    noise = generator.uniform(0, _NOISE) if generator.random() < 0.25 else 0.0
    return Shift(_pixels(places), torch.from_numpy(labels), slope, offset, float(noise))


def _contrast(generator: np.random.Generator) -> tuple[float, float]:
    """None, 1 - x, or a x + b whose values lie within 0.2 of [0, |a|]: a third each."""
    kind = generator.integers(3)
    if kind == 0:
        return 1.0, 0.0
    if kind == 1:
        return -1.0, 1.0
    size = generator.uniform(*_CONTRAST)
    offset = generator.uniform(-_OFFSET, _OFFSET)
    if generator.random() < 0.5:
        return float(size), float(offset)
    return -float(size), float(size + offset)


def of_tests(generator: np.random.Generator, side: int, classes: int) -> Shift:
    """The shift that is kept for tests: turned by 90 degrees and inverted; nothing is random."""
    places = np.rot90(np.arange(side**2).reshape(side, side))
    return Shift(_pixels(places), torch.arange(classes), -1.0, 1.0, 0.0)


def _pixels(places: Places) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(places).reshape(-1))


SHIFTS: dict[str, Callable[[np.random.Generator, int, int], Shift]] = {
    "training": of_training,
    "test": of_tests,
}
