"""Task families of low-rank factors that are trained from the start: networks, and sensing.

    Factorised   y = B A x + b in every layer of an image network, from random A and B
    Sensing      L(A, B) = mean_i (<M_i, B A> - y_i)^2,   y_i = <M_i, W> + noise
            or   L(A, B) = mean_i ||B A x_i - y_i||^2,    y_i = W x_i + noise

W has rank k, Frobenius norm 1 and singular values in geometric progression, whose largest is
``condition`` times the smallest.

    task: {family: "metaopt.tasks.factorised:Sensing", options: {size: 16, rank: 3}}

References:
    Tong, Ma and Chi, Accelerating ill-conditioned low-rank matrix estimation via scaled gradient
    descent (2021), for sensing and its condition number.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from metaopt.base.errors import UserError
from metaopt.base.streams import Stream, item_generator
from metaopt.symmetry.discovery.find import symmetries
from metaopt.tasks.images import digits_apart, shown_and_judged
from metaopt.tasks.lora_networks import Network
from metaopt.tasks.own import Family, Task, fresh_weights

Matrix = NDArray[np.float64]
MEASURED = ("matrices", "vectors")
_PER_NUMBER, _LEAST_JUDGED = 4, 64
"""Measurements to train on for each number that is looked for; and the fewest to be judged on."""


class Factorised(Family):
    """Digits classifiers of low-rank layers; the loss is the mean cross-entropy.

    Its ``symmetries`` are GL(rank) of each layer, and those of its hidden units.

    Args:
        width: the number of hidden units; of channels of the last convolution; of a token.
        rank: the rank of each layer.
        network: ``mlp``, ``convolutions`` or ``transformer``; of a transformer, queries, values and
            the feed-forward part have low rank.
        layers: the number of linear layers of an MLP, of convolutions, or of blocks.
        activation: ``leaky_relu``, ``relu`` or ``tanh``, in MLPs and convolutions.
        unseen: whether tasks are judged on the images that no task without it has, as in
            ``images``.
        batch: the number of images in a mini-batch.
        judged: the largest number of images that a task is judged on.

    Raises:
        UserError: if an option is not one of those named here, or scikit-learn is missing.
    """

    def __init__(
        self,
        width: int,
        rank: int,
        network: str = "mlp",
        layers: int = 3,
        activation: str = "leaky_relu",
        unseen: bool = False,
        batch: int = 32,
        judged: int = 600,
    ) -> None:
        if rank < 1:
            raise UserError(f"rank: found {rank}, expected at least 1")
        seen, apart = digits_apart()
        self.batch = batch
        self.unseen = unseen
        self.judged = judged
        self.seen = len(seen.y)
        self.shared = (torch.cat([seen.X, apart.X]), torch.cat([seen.y, apart.y]))
        kind = Network(network, width, layers, activation)
        self.net = kind.made(seen.X.shape[1], int(seen.y.max()) + 1)
        for path, layer in list(self.net.named_modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d) and kind.adapts(path):
                parent, _, name = path.rpartition(".")
                setattr(self.net.get_submodule(parent), name, in_factors(layer, rank))
        self.symmetries = symmetries(self.net)

    def sample(self, generator: np.random.Generator) -> Task:
        """One task: new weights, and the row numbers of its images."""
        weights = fresh_weights(self.net, generator)
        shown, judged = shown_and_judged(generator, self.seen, len(self.shared[1]), self.unseen)
        return Task(weights, (shown,), (judged[: self.judged],))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """The mean cross-entropy of the images at the given rows."""
        (rows,), (X, y) = data, shared
        return functional.cross_entropy(functional_call(self.net, weights, (X[rows],)), y[rows])


def in_factors(layer: nn.Linear | nn.Conv2d, rank: int) -> nn.Sequential:
    """A layer of the same inputs and outputs as y = B A x + b; of a convolution, B has kernel 1."""
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        return nn.Sequential(first, nn.Linear(rank, layer.out_features))
    names = ("kernel_size", "stride", "padding")
    alike = {name: getattr(layer, name) for name in names}
    into = nn.Conv2d(layer.in_channels, rank, bias=False, **alike)
    return nn.Sequential(into, nn.Conv2d(rank, layer.out_channels, 1))


class Sensing(Family):
    """Two factors of a matrix of rank k and known condition number, found from random measurements.

    Weights are ``0.weight``, A [k, size], and ``1.weight``, B [size, k]. They start small, random
    and balanced: B^T B = A A^T. All measurements without noise vanish at B A = W. Tasks are judged
    on measurements of their own, without noise. The matrices M_i are normal and the same for all
    tasks; the vectors x_i are each task's own.

    Args:
        size: the number of rows, and of columns, of W.
        rank: k.
        condition: the largest condition number of W.
        from_condition: the smallest. Each task draws its own, uniform in its logarithm.
        measured: ``matrices`` or ``vectors``.
        noise: the standard deviation of the noise of y, of which each measurement of W is 1.
        start: the Frobenius norm of B A at the start.
        batch: the number of measurements in a mini-batch; None for all of them at each step.

    Raises:
        UserError: if an option is out of its range.
    """

    def __init__(
        self,
        size: int,
        rank: int,
        condition: float = 1000.0,
        from_condition: float = 1.0,
        measured: str = "matrices",
        noise: float = 0.0,
        start: float = 0.1,
        batch: int | None = 32,
    ) -> None:
        if measured not in MEASURED:
            raise UserError(f"measured: found {measured!r}, expected one of {', '.join(MEASURED)}")
        if not 1 <= rank <= size:
            raise UserError(f"rank: found {rank}, expected from 1 to {size}, the size")
        if not 1 <= from_condition <= condition:
            raise UserError(
                f"condition: found {condition:g}, expected at least from_condition, and that at "
                f"least 1, found {from_condition:g}"
            )
        self.batch = batch
        self.size, self.rank = size, rank
        self.conditions = (from_condition, condition)
        self.noise, self.start = noise, start
        self.by_matrices = measured == "matrices"
        net = nn.Sequential(nn.Linear(size, rank, bias=False), nn.Linear(rank, size, bias=False))
        self.symmetries = symmetries(net)
        # Vectors must span the inputs, whatever the rank.
        self.shown = _PER_NUMBER * (rank * (2 * size - rank) if self.by_matrices else 2 * size)
        self.judged = max(self.shown // 4, _LEAST_JUDGED)
        if self.by_matrices:
            drawn = item_generator(Stream.COMMON, 1, size).standard_normal(
                (self.shown + self.judged, size * size), dtype=np.float32
            )
            self.shared = (torch.from_numpy(drawn),)

    def sample(self, generator: np.random.Generator) -> Task:
        """One task: a matrix W, factors to start from, and measurements of W."""
        low, high = map(math.log, self.conditions)
        condition = math.exp(generator.uniform(low, high))
        spectrum = condition ** -np.linspace(0, 1, self.rank) if self.rank > 1 else np.ones(1)
        spectrum = spectrum / np.linalg.norm(spectrum)
        W = (self._frame(generator) * spectrum) @ self._frame(generator).T
        weights = self._balanced(generator)
        x, y = self._measured(W, generator)
        noise = self.noise * generator.standard_normal(y.shape)
        noise /= 1 if self.by_matrices else math.sqrt(self.size)
        noise[self.shown :] = 0
        y = y + torch.from_numpy(noise)
        apart = [(part[: self.shown], part[self.shown :]) for part in (x, y.float())]
        data, test = zip(*apart, strict=True)
        return Task(weights, data, test)

    def _measured(self, W: Matrix, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The numbers of the matrices with <M_i, W>, or the vectors with W x_i."""
        count = self.shown + self.judged
        if self.by_matrices:
            (M,) = self.shared
            return torch.arange(count), M.double() @ torch.from_numpy(W).flatten()
        x = generator.standard_normal((count, self.size), dtype=np.float32)
        return torch.from_numpy(x), torch.from_numpy(x @ W.T)

    def _balanced(self, generator: np.random.Generator) -> dict[str, Tensor]:
        """A = R D V^T and B = U D R^T, R orthogonal, D positive."""
        D = generator.uniform(0.5, 1, size=self.rank)
        D *= math.sqrt(self.start / np.linalg.norm(D**2))
        R = orthonormal(generator, self.rank, self.rank)
        A = (R * D) @ self._frame(generator).T
        B = (self._frame(generator) * D) @ R.T
        named = {"0.weight": A, "1.weight": B}
        return {name: torch.from_numpy(factor).float() for name, factor in named.items()}

    def _frame(self, generator: np.random.Generator) -> Matrix:
        return orthonormal(generator, self.size, self.rank)

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """The mean squared error of the measurements."""
        x, y = data
        A, B = weights["0.weight"], weights["1.weight"]
        if self.by_matrices:
            return (shared[0][x] @ (B @ A).flatten() - y).square().mean()
        return (x @ A.T @ B.T - y).square().sum(1).mean()


def orthonormal(generator: np.random.Generator, size: int, rank: int) -> Matrix:
    """Random orthonormal columns [size, rank], uniform among all such."""
    Q, R = np.linalg.qr(generator.standard_normal((size, rank)))
    # The signs that qr leaves open differ between libraries.
    return Q * np.sign(np.diag(R))
