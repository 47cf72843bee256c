"""What makes the tasks of ``various`` differ: changed images, labels and numbers of examples.

Every function is pure: what is drawn is drawn by ``drawn_change`` and by the functions that take a
generator.

References:
    Metz et al., VeLO: training versatile learned optimizers by scaling up, arXiv 2211.09760.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

WRONG = 0.1
"""The largest share of wrong labels."""
LOG_SCALE = 1.0
"""The logarithm of the largest factor of inputs."""
FEWEST = 64
"""The smallest number of different examples that a task trains on."""


@dataclass(frozen=True)
class ImageChange:
    """How a task changes all its images; the defaults change nothing.

    Attributes:
        down: rows that they move down by, with zeros in their place.
        right: columns that they move to the right by.
        transposed: whether rows become columns.
        mirrored: whether columns change their order.
        inverted: whether x becomes 1 - x.
        contrast: the factor c of 1/2 + c (x - 1/2).
        noise: the standard deviation of what is added to every pixel.
        order: the pixels in a new order, int64 [side^2]; None: in their own.
    """

    down: int = 0
    right: int = 0
    transposed: bool = False
    mirrored: bool = False
    inverted: bool = False
    contrast: float = 1.0
    noise: float = 0.0
    order: Tensor | None = None

    def of(self, X: Tensor, generator: np.random.Generator) -> Tensor:
        """Images [N, side^2], changed in the order of the attributes.

        Args:
            X: the images.
            generator: the source of the noise.
        """
        side = math.isqrt(X.shape[1])
        images = shifted(X.reshape(-1, side, side), self.down, self.right)
        if self.transposed:
            images = images.mT
        if self.mirrored:
            images = images.flip(2)
        if self.inverted:
            images = 1 - images
        images = 0.5 + self.contrast * (images - 0.5)
        if self.noise:
            drawn = generator.standard_normal(tuple(images.shape), dtype=np.float32)
            images = images + self.noise * torch.from_numpy(drawn)
        flat = images.reshape(len(X), -1)
        return flat if self.order is None else flat[:, self.order]


def drawn_change(generator: np.random.Generator, pixels: int, permutes: bool) -> ImageChange:
    """A random change of images; each kind of change is in a part of the tasks.

    Args:
        generator: the source of randomness.
        pixels: the number of pixels of an image.
        permutes: whether pixels may change their order.
    """
    down, right = (int(step) for step in generator.integers(-1, 2, size=2))
    transposed, mirrored, inverted = (bool(draw < 0.5) for draw in generator.random(3))
    contrast = float(np.exp(generator.uniform(-0.7, 0.3)))
    noise = float(generator.uniform(0, 0.2) * (generator.random() < 0.5))
    permuted = permutes and generator.random() < 0.3
    order = torch.from_numpy(generator.permutation(pixels)) if permuted else None
    return ImageChange(down, right, transposed, mirrored, inverted, contrast, noise, order)


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Images [N, R, S] moved, with zeros where nothing was."""
    rows, columns = images.shape[1:]
    far = max(abs(down), abs(right))
    padded = functional.pad(images, (far, far, far, far))
    return padded[:, far - down : far - down + rows, far - right : far - right + columns]


def drawn_labels(generator: np.random.Generator, classes: int) -> Tensor:
    """New names of classes: permuted, or merged into fewer, at least two; int64 [classes].

    Args:
        generator: the source of randomness.
        classes: their number.
    """
    names = generator.permutation(classes)
    if generator.random() < 0.5:
        names = names % int(generator.integers(2, classes + 1))
    return torch.from_numpy(names)


def mistaken(y: Tensor, share: float, classes: int, generator: np.random.Generator) -> Tensor:
    """Labels of which round(share N) are any other than before, all others equally likely.

    Args:
        y: the labels, int64, of any shape.
        share: of labels to change.
        classes: the number of classes.
        generator: the source of randomness.
    """
    wrong = round(share * y.numel())
    places = torch.from_numpy(generator.permutation(y.numel())[:wrong])
    steps = torch.from_numpy(generator.integers(1, classes, size=wrong))
    flat = y.flatten().clone()
    flat[places] = (flat[places] + steps) % classes
    return flat.reshape(y.shape)


def drawn_scale(generator: np.random.Generator) -> float:
    """A factor between e^-1 and e, its logarithm uniform."""
    return float(np.exp(generator.uniform(-LOG_SCALE, LOG_SCALE)))


def fewer(rows: Tensor, generator: np.random.Generator) -> Tensor:
    """As many rows, of which in half of the cases only the first few are different.

    Tasks have tensors of the same shapes, and draw mini-batches with replacement: a row that comes
    again and again makes no other task than one with fewer rows.

    Args:
        rows: row numbers [N], in a random order.
        generator: the source of randomness.
    """
    if generator.random() < 0.5 or len(rows) <= FEWEST:
        return rows
    count = round(float(np.exp(generator.uniform(math.log(FEWEST), math.log(len(rows))))))
    return rows[torch.arange(len(rows)) % count]
