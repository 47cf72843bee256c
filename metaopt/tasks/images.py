"""A task family of images: small networks on scikit-learn's digits, or on MNIST.

    f(x) = W2 s(W1 x + b1) + b2,   s LeakyReLU(0.1),   loss: cross-entropy, on mini-batches

or another network of ``image_networks``.

    task: {family: "metaopt.tasks.images:Images", options: {width: 32}}
    task: {family: "metaopt.tasks.images:Images", options: {width: 32, path: the folder of MNIST}}

A third of the digits (of MNIST the test files) is kept apart as *unseen*. With ``unseen``, tasks
train on all other images and are judged on these. Without it, each task draws a new split of the
other images, three quarters to train on and one quarter to be judged on. A rule that is
meta-trained without ``unseen`` and evaluated with it is therefore judged on new images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from metaopt.base.errors import UserError
from metaopt.base.network import as_matrices
from metaopt.base.streams import Stream, generator
from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.units import units_of
from metaopt.tasks.datasets import Labelled, digits, mnist
from metaopt.tasks.image_networks import NETWORKS
from metaopt.tasks.own import Family, Task, fresh_weights


class Images(Family):
    """Small image classifiers with random initial weights; the loss is the mean cross-entropy.

    Args:
        width: the number of hidden units.
        network: the name of the network in ``image_networks.NETWORKS``.
        path: a folder with MNIST's IDX files; None for scikit-learn's digits.
        unseen: whether tasks are judged on the images that no task trains on.
        unbalanced: the largest standard deviation of the t of hidden units, which start scaled:
            x -> exp(t) x for weights that make a unit, y -> exp(-t) y for those that read it. Each
            task draws its own standard deviation, uniform between 0 and this. The network computes
            the same function, and starts at another point of its orbit.
        batch: the number of images in a mini-batch.
        judged: the largest number of images that a task is judged on.

    Raises:
        UserError: if the data are missing or damaged, or the network is unknown.
    """

    def __init__(
        self,
        width: int,
        network: str = "two_layers",
        path: str | None = None,
        unseen: bool = False,
        unbalanced: float = 0.0,
        batch: int = 32,
        judged: int = 600,
    ) -> None:
        seen, apart = digits_apart() if path is None else _mnist(Path(path))
        self.batch = batch
        self.unseen = unseen
        self.unbalanced = unbalanced
        self.judged = judged
        self.seen = len(seen.y)
        self.shared = (torch.cat([seen.X, apart.X]), torch.cat([seen.y, apart.y]))
        X, y = self.shared
        if network not in NETWORKS:
            raise UserError(f"network: found {network!r}, expected one of {', '.join(NETWORKS)}")
        self.net = NETWORKS[network](X.shape[1], width, int(y.max()) + 1)
        self.symmetries = symmetries(self.net)
        self.units = units_of(self.symmetries, {n: p.shape for n, p in self.net.named_parameters()})

    def sample(self, generator: np.random.Generator) -> Task:
        """One task: new weights, and the row numbers of its images."""
        weights = self._elsewhere(fresh_weights(self.net, generator), generator)
        shown, judged = shown_and_judged(generator, self.seen, len(self.shared[1]), self.unseen)
        return Task(weights, (shown,), (judged[: self.judged],))

    def _elsewhere(
        self, weights: dict[str, Tensor], generator: np.random.Generator
    ) -> dict[str, Tensor]:
        if self.unbalanced == 0:
            return weights
        assert self.units is not None
        spread = generator.uniform(0, self.unbalanced)
        t = torch.from_numpy(spread * generator.standard_normal((1, self.units.count)))
        matrices = tuple(as_matrices(W[None]) for W in weights.values())
        moved, _ = self.units.scaled(t.to(matrices[0]), matrices)
        parts = zip(weights.items(), moved, strict=True)
        return {name: M.reshape(W.shape) for (name, W), M in parts}

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """The mean cross-entropy of the images at the given rows."""
        (rows,), (X, y) = data, shared
        return functional.cross_entropy(functional_call(self.net, weights, (X[rows],)), y[rows])


def shown_and_judged(
    generator: np.random.Generator, seen: int, count: int, unseen: bool
) -> tuple[Tensor, Tensor]:
    """The row numbers of the images that a task trains on, and of those that judge it.

    Args:
        generator: the source of randomness.
        seen: the number of images that tasks may show; the others follow them and are unseen.
        count: the number of all images.
        unseen: whether the unseen images judge; otherwise a quarter of the others does.
    """
    if unseen:
        shown, judged = np.arange(seen), generator.permutation(np.arange(seen, count))
    else:
        shown, judged = np.split(generator.permutation(seen), [3 * seen // 4])
    return torch.from_numpy(shown), torch.from_numpy(judged)


def digits_apart() -> tuple[Labelled, Labelled]:
    """The digits in a fixed random order: the first two thirds, and the last third."""
    found = digits()
    order = torch.from_numpy(generator(Stream.SPLIT, seed=0).permutation(len(found.y)))
    first, last = order.split([2 * len(order) // 3, len(order) - 2 * len(order) // 3])
    return Labelled(found.X[first], found.y[first]), Labelled(found.X[last], found.y[last])


def _mnist(folder: Path) -> tuple[Labelled, Labelled]:
    return mnist(folder, "train"), mnist(folder, "test")
