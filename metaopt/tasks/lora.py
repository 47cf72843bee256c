"""A task family of adapters: factors of low rank in networks that know upright digits.

    y = W x + b + scale B A x     in every adapted layer, A and B trained, W and b frozen

    task: {family: "metaopt.tasks.lora:LoRA", options: {width: 64, rank: 4}}

Each task draws a base network out of a pool, a shift of the data, and the first A; B starts at 0.
The loss is the mean cross-entropy on mini-batches of shifted digits.

A third of the digits is kept apart as *unseen*, as in ``images``; base networks are pre-trained on
the others. With ``unseen``, tasks adapt base networks that no task without it has, and are judged
on images that neither these networks nor other tasks saw. With ``shifts: test`` the digits are
turned by 90 degrees and inverted, which no task of meta-training does (``lora_shifts``).

References:
    Hu et al., LoRA: low-rank adaptation of large language models (2021).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from metaopt.base.errors import UserError
from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.groups import Group, Symmetries
from metaopt.tasks.images import digits_apart, shown_and_judged
from metaopt.tasks.lora_bases import as_shaped, bases
from metaopt.tasks.lora_layers import adapted, fresh_factors
from metaopt.tasks.lora_networks import Network
from metaopt.tasks.lora_shifts import SHIFTS
from metaopt.tasks.own import Family, Task

HEADS = ("adapted", "trained")
UNSEEN = 1000
"""The number of the first base network that only tasks with ``unseen`` have."""


class LoRA(Family):
    """Networks that are adapted to shifted digits; the loss is the mean cross-entropy.

    Its ``symmetries`` are GL(rank) of each adapter: A -> g A, B -> B g^-1.

    Args:
        width: the number of hidden units; of channels of the last convolution; of a token.
        rank: the rank of each adapter.
        network: ``mlp``, ``convolutions`` or ``transformer``.
        layers: the number of linear layers of an MLP, of convolutions, or of blocks; the adapters
            of a transformer are those of queries, values and the feed-forward part.
        activation: ``leaky_relu``, ``relu`` or ``tanh``, in MLPs and convolutions.
        scale: the factor of B A.
        head: ``adapted`` as the other layers; or ``trained``, all of it, from 0: a new last layer.
        shifts: ``training`` or ``test``.
        unseen: whether base networks and the images that judge are those that no task without it
            has.
        batch: the number of images in a mini-batch.
        judged: the largest number of images that a task is judged on.
        pool: the number of base networks, at most 1,000.
        pretraining: the number of steps that pre-train them.

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
        scale: float = 2.0,
        head: str = "adapted",
        shifts: str = "training",
        unseen: bool = False,
        batch: int = 64,
        judged: int = 600,
        pool: int = 16,
        pretraining: int = 300,
    ) -> None:
        if shifts not in SHIFTS:
            raise UserError(f"shifts: found {shifts!r}, expected one of {', '.join(SHIFTS)}")
        if head not in HEADS:
            raise UserError(f"head: found {head!r}, expected one of {', '.join(HEADS)}")
        if rank < 1:
            raise UserError(f"rank: found {rank}, expected at least 1")
        if not 1 <= pool <= UNSEEN:
            raise UserError(f"pool: found {pool}, expected from 1 to {UNSEEN}")
        self.batch = batch
        self.unseen = unseen
        self.judged = judged
        self.shift = SHIFTS[shifts]
        self.seen, self.apart = digits_apart()
        pixels, self.classes = self.seen.X.shape[1], int(self.seen.y.max()) + 1
        self.side = math.isqrt(pixels)
        kind = Network(network, width, layers, activation)
        self.shared = (bases(kind, UNSEEN if unseen else 0, pool, pretraining),)
        made = kind.made(pixels, self.classes)
        *_, last = (path for path, layer in made.named_modules() if isinstance(layer, nn.Linear))
        apart = {last} if head == "trained" else set()
        self.net = adapted(made, rank, scale, lambda path: kind.adapts(path) and path not in apart)
        for path in apart:
            self.net.get_submodule(path).requires_grad_()
        found = symmetries(self.net)
        # Of rank 1, GL(1) is listed as the scaling of one number.
        group = Group.LINEAR if rank > 1 else Group.SCALING
        trained = {name for name, p in self.net.named_parameters() if p.requires_grad}
        pairs = (
            symmetry
            for symmetry in found
            if symmetry.group is group and all(slot.path in trained for slot in symmetry.slots)
        )
        self.symmetries = Symmetries(pairs, found.skipped)
        frozen = [(n, p.shape) for n, p in self.net.named_parameters() if not p.requires_grad]
        self.frozen, self.shapes = map(list, zip(*frozen, strict=True))

    def sample(self, generator: np.random.Generator) -> Task:
        """One task: fresh factors, shifted images with labels, and the number of its base."""
        weights = fresh_factors(self.net, generator)
        base = int(generator.integers(len(self.shared[0])))
        shift = self.shift(generator, self.side, self.classes)
        X = torch.cat([self.seen.X, self.apart.X])
        y = torch.cat([self.seen.y, self.apart.y])
        X, y = shift.images(X, generator), shift.labels[y]

        def part(rows: Tensor) -> tuple[Tensor, ...]:
            return X[rows], y[rows], torch.full((len(rows),), base)

        shown, judged = shown_and_judged(generator, len(self.seen.y), len(y), self.unseen)
        return Task(weights, part(shown), part(judged[: self.judged]))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """The mean cross-entropy of the adapted network, its base the one that the data number."""
        X, y, base = data
        row = shared[0].index_select(0, base[:1])[0]
        # The last layer comes last: one that is trained anew is no part of the frozen base.
        row = row[: sum(shape.numel() for shape in self.shapes)]
        frozen = zip(self.frozen, as_shaped(row, self.shapes), strict=True)
        logits = functional_call(self.net, weights | dict(frozen), (X,))
        return functional.cross_entropy(logits, y)
