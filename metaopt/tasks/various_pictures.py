"""Classifiers of scikit-learn's digits, of many kinds: a part of ``various``.

    loss: the mean cross-entropy; of ``asks: image`` the mean squared error of the image told again

The third of the digits that ``images`` keeps apart is never read.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from metaopt.tasks.images import digits_apart, shown_and_judged
from metaopt.tasks.own import Family, Task, fresh_weights
from metaopt.tasks.various_changes import (
    WRONG,
    drawn_change,
    drawn_labels,
    drawn_scale,
    fewer,
    mistaken,
)
from metaopt.tasks.various_layers import one_size, require, sizes
from metaopt.tasks.various_networks import ResidualImages, convolutions, perceptron
from metaopt.tasks.various_transformers import Blocks, RowReader, TokenReader

NETWORKS = ("perceptron", "convolutions", "residual", "rows", "patches")
ASKS = ("class", "image")
LEVELS = 3
"""Of the pixels of a patch; a patch of 2 by 2 is one of LEVELS^4 tokens."""


class Pictures(Family):
    """Networks on digits, with random initial weights.

    Args:
        network: ``perceptron``; ``convolutions``; ``residual``: convolutions with residual blocks;
            ``rows``: a transformer over rows; ``patches``: one over embedded patches of 2 by 2.
        hidden: widths of hidden layers, or channels of convolutions: "32-16". Of ``residual`` and
            of transformers one number: channels, or the width of a token.
        activation: between layers, one of ``various_layers.ACTIVATIONS``.
        norm: ``none``, ``layer`` (perceptrons) or ``batch`` (perceptrons, convolutions).
        pool: of convolutions, ``max`` or ``stride``.
        layers: of ``residual`` and transformers, the number of blocks.
        heads: of transformers.
        inner: the width of a transformer's feed-forward part; 0: twice that of a token.
        first: whether a transformer's norms come first, or last.
        final: whether a norm follows a transformer's last layer.
        init: of transformers, one of ``various_layers.STARTS``.
        asks: ``class``, or ``image`` (perceptrons): the image itself.
        varied: whether each task changes images, labels, scale and the number of images.
        batch: the number of images in a mini-batch.
        judged: the largest number of images that a task is judged on.

    Raises:
        UserError: if an option is not one of those named here, or scikit-learn is missing.
    """

    def __init__(
        self,
        network: str = "perceptron",
        hidden: str = "32",
        activation: str = "relu",
        norm: str = "none",
        pool: str = "max",
        layers: int = 1,
        heads: int = 2,
        inner: int = 0,
        first: bool = True,
        final: bool = False,
        init: str = "torch",
        asks: str = "class",
        varied: bool = False,
        batch: int = 32,
        judged: int = 128,
    ) -> None:
        require("network", network, NETWORKS)
        require("asks", asks, ASKS if network == "perceptron" else ("class",))
        self.seen, _ = digits_apart()
        pixels, self.classes = self.seen.X.shape[1], int(self.seen.y.max()) + 1
        self.batch = batch
        self.judged = judged
        self.varied = varied
        self.retells = asks == "image"
        self.permutes = network == "perceptron"
        self.embeds = network == "patches"
        side = math.isqrt(pixels)
        if network == "perceptron":
            outputs = pixels if self.retells else self.classes
            self.net: nn.Module = perceptron(
                [pixels, *sizes("hidden", hidden), outputs], activation, norm
            )
            return
        if network == "convolutions":
            channels = sizes("hidden", hidden)
            self.net = convolutions(side, channels, self.classes, activation, norm, pool)
            return
        width = one_size("hidden", hidden)
        if network == "residual":
            self.net = ResidualImages(side, width, layers, self.classes, activation, norm)
            return
        inner = inner or 2 * width
        blocks = Blocks(width, heads, inner, layers, first, final, activation, init)
        self.net = (
            TokenReader(LEVELS**4, (side // 2) ** 2, blocks, self.classes, mean=True)
            if self.embeds
            else RowReader(side, blocks, self.classes)
        )

    def sample(self, generator: np.random.Generator) -> Task:
        """One task: new weights, and images with labels."""
        weights = fresh_weights(self.net, generator)
        X, y = self.seen.X, self.seen.y
        shown, judged = shown_and_judged(generator, len(y), len(y), unseen=False)
        judged = judged[: self.judged]
        if self.varied:
            X = drawn_change(generator, X.shape[1], self.permutes).of(X, generator)
            y = drawn_labels(generator, self.classes)[y]
            y = mistaken(y, generator.uniform(0, WRONG), self.classes, generator)
            shown = fewer(shown, generator)
        if self.embeds:
            X = patches(X)
        elif self.varied:
            X = X * drawn_scale(generator)
        return Task(weights, (X[shown], y[shown]), (X[judged], y[judged]))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """The mean cross-entropy of the images, or the mean squared error of their pixels."""
        X, y = data
        found = functional_call(self.net, weights, (X,))
        if self.retells:
            return (found - X).square().mean()
        return functional.cross_entropy(found, y)


def patches(X: Tensor) -> Tensor:
    """Patches of 2 by 2 pixels as tokens: images [N, side^2] -> int64 [N, side^2 / 4].

    A pixel is one of ``LEVELS`` levels between 0 and 1, and a patch the number that its four levels
    are the digits of.
    """
    side = math.isqrt(X.shape[1])
    levels = (X * LEVELS).long().clamp(0, LEVELS - 1)
    grid = levels.reshape(-1, side // 2, 2, side // 2, 2)
    weights = LEVELS ** torch.arange(4).reshape(2, 1, 2)
    return (grid * weights).sum((2, 4)).flatten(1)
