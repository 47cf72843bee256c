"""One training of study a: all variants and seeds of an optimizer side by side, [variants, seeds].

Mini-batches come in a fixed order, the same for all, as in the published code; seeds differ in
initial weights and in the images that teleports are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import trange

from studies.images import BATCH, Images
from studies.teleport.action import (
    best_scales,
    drift,
    factors,
    follow,
    gradient_norm,
    random_direction,
    search,
)
from studies.teleport.data import AROUND, drawn
from studies.teleport.stack import Layers, gradients, initial, mean_losses, squared_norm
from studies.teleport.steps import OPTIMIZERS

TELEPORTS = 8
"""Before as many of the first updates of one epoch."""
STOP = 100.0
"""The squared gradient norm from which a search goes no further."""
EPOCH = {"SGD": 2, "momentum": 0, "AdaGrad": 2, "RMSProp": 0, "Adam": 0}
GROUP_RATE = {"SGD": 1e-4, "momentum": 5e-2, "AdaGrad": 1e-4, "RMSProp": 5e-2, "Adam": 5e-2}
SHOWN = 1000
"""Images of the training set on which its loss is told."""


@dataclass(frozen=True)
class Variant:
    """What is done at the eight moments."""

    name: str
    move: str = ""  # "search", "random", "scaling", or nothing
    reset: bool = False  # whether the optimizer is built anew
    own: bool = False  # whether the rate is that of the recipe and not the plain optimizer's


NONE = Variant("none")
RESET = Variant("reset alone", reset=True)
RANDOM = Variant("random element", "random", reset=True)
RECIPE = Variant("published recipe", "search", reset=True)
KEPT = Variant("recipe, state kept", "search")
SCALING = Variant("exact scaling", "scaling")
OWN = Variant("recipe at its own rate", "search", reset=True, own=True)
ALL = (NONE, RESET, RANDOM, RECIPE, KEPT, SCALING, OWN)
STATELESS = (NONE, RANDOM, RECIPE, SCALING, OWN)


def bounded_scales(
    layers: Layers, x: Tensor, y: Tensor, lengths: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Scaling to the greatest gradient norm, as far as a search went and no further than STOP.

    Args:
        layers: of R runs.
        x: images, [R, n, S].
        y: labels, [R, S].
        lengths: the norm of log g that is allowed, [R] for each hidden layer.

    Returns:
        t of all hidden units, and the squared gradient norm there, [R].
    """
    slopes = gradients(layers, x, y)
    bounds = [length / G.shape[1] ** 0.5 for length, G in zip(lengths, slopes[:-1], strict=True)]
    scales = best_scales(slopes, bounds)

    def reached(share: Tensor) -> Tensor:
        parts = factors([share[:, None] * t for t in scales])
        return squared_norm([G / factor for G, factor in zip(slopes, parts, strict=True)])

    low, high = torch.zeros(len(x)), torch.ones(len(x))
    fits = reached(high) <= STOP
    for _ in range(20):
        middle = (low + high) / 2
        good = reached(middle) <= STOP
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    share = torch.where(fits, 1.0, low)
    return [share[:, None] * t for t in scales], reached(share)


class Training:
    """Weights, optimizer and what has been found."""

    def __init__(
        self,
        images: Images,
        sizes: Sequence[int],
        kind: str,
        variants: Sequence[Variant],
        rates: Sequence[float],
        seeds: Sequence[int],
    ) -> None:
        self.images, self.kind, self.seeds = images, kind, list(seeds)
        self.variants = variants
        self.layers = [W.repeat(len(variants), 1, 1) for W in initial(sizes, self.seeds)]
        each = torch.tensor(rates).repeat_interleave(len(self.seeds))
        self.optimizer = OPTIMIZERS[kind](self.layers, each)
        self.told: dict[str, dict[str, list[list[float]]]] = {}

    def rows(self, place: int) -> slice:
        """Of a variant."""
        return slice(place * len(self.seeds), (place + 1) * len(self.seeds))

    def teleport(self, index: int) -> None:
        """All variants, once."""
        x, y = drawn(self.images.train, self.seeds, index, AROUND)
        fresh = drawn(self.images.validation, self.seeds, index, AROUND)
        rate = torch.full((len(self.seeds),), GROUP_RATE[self.kind])
        objective = gradient_norm(x, y)
        of_recipe: list[Tensor] = []
        # The random element and scaling go as far as the recipe's search went.
        order = sorted(range(len(self.variants)), key=lambda v: self.variants[v] is not RECIPE)
        for place in order:
            variant, rows = self.variants[place], self.rows(place)
            if variant.reset:
                self.optimizer.reset(rows)
            before = [W[rows].clone() for W in self.layers]
            if variant.move == "search":
                found = search(before, x, objective, rate, stop=STOP)
                after, norms = found.layers, found.norms
                if variant is RECIPE:
                    of_recipe = norms
            elif variant.move == "random":
                norms = of_recipe
                units = [
                    random_direction(self.seeds, index * len(before) + i, W.shape[1])
                    for i, W in enumerate(before[:-1])
                ]
                after = follow(before, x, units, norms)
            elif variant.move == "scaling":
                lengths = [norm.sum(0) for norm in of_recipe]
                scales, _ = bounded_scales(before, x, y, lengths)
                norms = [torch.linalg.vector_norm(t, dim=1)[None] for t in scales]
                moving = factors(scales)
                after = [W * factor for W, factor in zip(before, moving, strict=True)]
                self.optimizer.transport(rows, moving)
            else:
                continue
            for W, new in zip(self.layers, after, strict=True):
                W[rows] = new
            self._tell(variant, before, after, norms, (x, y), fresh)

    def _tell(
        self,
        variant: Variant,
        before: Layers,
        after: Layers,
        norms: list[Tensor],
        here: tuple[Tensor, Tensor],
        fresh: tuple[Tensor, Tensor],
    ) -> None:
        outputs, loss = drift(before, after, *here)
        fresh_outputs, fresh_loss = drift(before, after, *fresh)
        said = {
            "squared norm before": squared_norm(gradients(before, *here)),
            "squared norm after": squared_norm(gradients(after, *here)),
            "length": sum((norm.sum(0) for norm in norms), torch.zeros(())),
            "drift": outputs,
            "log loss": loss,
            "fresh drift": fresh_outputs,
            "fresh log loss": fresh_loss,
        }
        kept = self.told.setdefault(variant.name, {})
        for key, value in said.items():
            kept.setdefault(key, []).append(value.tolist())

    def judged(self, which: str) -> list[list[float]]:
        """Losses on ``train`` (some), ``validation`` or ``test``: [variants, seeds]."""
        part = getattr(self.images, which)
        found = mean_losses(self.layers, part.X[:SHOWN].mT[None], part.y[None, :SHOWN])
        return found.view(-1, len(self.seeds)).tolist()

    def run(self, epochs: int, judged: Sequence[str]) -> dict[str, list[list[list[float]]]]:
        """Train; losses before the first epoch and after each: [epochs + 1, variants, seeds]."""
        found = {which: [self.judged(which)] for which in judged}
        train = self.images.train
        batches = [
            (train.X[i : i + BATCH].mT[None], train.y[None, i : i + BATCH])
            for i in range(0, self.images.batches * BATCH, BATCH)
        ]
        for epoch in trange(epochs, desc=self.kind, leave=False, mininterval=1):
            for i, (x, y) in enumerate(batches):
                if epoch == EPOCH[self.kind] and i < TELEPORTS:
                    self.teleport(i)
                self.optimizer.step(self.layers, gradients(self.layers, x, y))
            for which, losses in found.items():
                losses.append(self.judged(which))
        return found
