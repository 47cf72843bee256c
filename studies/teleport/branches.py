"""Study b, second part: teleports up and down in phi and psi at epoch 20 (figure 4 of the paper).

One run of SGD to epoch 15; from its weights seeds x variants run on side by side, each seed with
mini-batches in an order of its own, which all its variants share. Beside each search stands a
random element that moves the outputs as far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from metaopt.base.streams import Stream, item_generator
from studies.images import BATCH, Images
from studies.teleport.action import act, drift, random_direction, search
from studies.teleport.data import drawn
from studies.teleport.measures import curve, exponential, phi, phi_of, psi
from studies.teleport.stack import (
    Layers,
    forward,
    gradients,
    initial,
    leaky,
    mean_losses,
)
from studies.teleport.steps import SGD

BRANCHED, MOVED = 15, 20
"""Epochs, counted from 0."""
DISTANCES = tuple(round(0.1 * i, 1) for i in range(1, 10))
PHI_RATE = 5e-2
PHI_STOP = 2.0
FARTHEST = -0.7
"""Log of the norm that a random element has at most, half: some hardly move the outputs at all."""
DRAWS = 20
"""Of phi and psi where they are told."""


@dataclass(frozen=True)
class Move:
    """A search: what it moves, which way, how often."""

    name: str
    measure: str
    up: bool
    teleports: int


MOVES = (
    Move("phi down", "phi", False, 10),
    Move("phi up", "phi", True, 2),
    Move("psi down", "psi", False, 5),
    Move("psi up", "psi", True, 10),
)
PSI_RATES = {False: 5e-2, True: 2e-1}


@dataclass(frozen=True)
class Branching:
    """How much of it."""

    seeds: int
    epochs: int
    rate: float
    directions: int  # of phi in a search, of 100
    samples: int  # of a teleport, of 2,000


def variants() -> list[str]:
    """Without teleports, then each search and its control."""
    return ["none"] + [name for m in MOVES for name in (m.name, f"{m.name}, random")]


def as_far(
    move: Callable[[Tensor], Layers], moved: Callable[[Layers], Tensor], far: Tensor
) -> Layers:
    """Along a line of elements to where outputs have moved by ``far``, or as near as it goes.

    Args:
        move: the weights at an element of each run's size, [R].
        moved: how far the outputs of weights are, [R].
        far: [R].
    """
    low, high = torch.full_like(far, -12.0), torch.full_like(far, FARTHEST)
    for _ in range(24):
        middle = (low + high) / 2
        less = moved(move(middle.exp())) < far
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return move(((low + high) / 2).exp())


class Branches:
    """All runs from epoch 15 on: run s V + v is variant v of seed s."""

    def __init__(self, images: Images, hidden: Sequence[int], plan: Branching) -> None:
        self.images, self.plan = images, plan
        self.seeds = list(range(1, plan.seeds + 1))
        self.names = variants()
        sizes = (images.train.X.shape[1], *hidden, 10)
        self.layers = initial(sizes, [0])
        self.told: dict[str, list[dict[str, list[float]]]] = {}

    def epoch(self, epoch: int, seeds: Sequence[int]) -> None:
        """One, in an order of each seed's own."""
        train = self.images.train
        order = torch.stack(
            [
                torch.from_numpy(
                    item_generator(Stream.MINIBATCH, seed, 1_000_000 + epoch).permutation(
                        len(train.y)
                    )
                )
                for seed in seeds
            ]
        )
        rates = torch.full((len(self.layers[0]),), self.plan.rate)
        optimizer = SGD(self.layers, rates)
        for i in range(self.images.batches):
            if epoch == MOVED and len(seeds) > 1:
                for move in MOVES:
                    if i < move.teleports:
                        self.teleport(move, i)
            rows = order[:, i * BATCH : (i + 1) * BATCH]
            x, y = train.X[rows].mT, train.y[rows]
            optimizer.step(self.layers, gradients(self.layers, x, y))

    def _rows(self, name: str) -> slice:
        return slice(self.names.index(name), None, len(self.names))

    def teleport(self, move: Move, index: int) -> None:
        """A search of all seeds, and its control."""
        x, y = drawn(self.images.train, self.seeds, index, self.plan.samples)
        place = 100 * MOVES.index(move) + index
        draws = item_generator(Stream.SHARPNESS, 2, place)
        before = [W[self._rows(move.name)].clone() for W in self.layers]
        other = [W[self._rows(f"{move.name}, random")].clone() for W in self.layers]
        units = [
            random_direction(self.seeds, 10 * place + i, W.shape[1])
            for i, W in enumerate(before[:-1])
        ]
        if move.measure == "phi":
            rate = torch.full((len(self.seeds),), PHI_RATE if move.up else -PHI_RATE)
            stop = PHI_STOP if move.up else float("inf")
            objective = phi_of(x, y, DISTANCES, self.plan.directions, draws)
            after = search(before, x, objective, rate, stop=stop).layers

            def random(size: Tensor) -> Layers:
                return act(other, x, [size[:, None, None] * T for T in units])

        else:
            k = before[-1].shape[2]
            M = torch.from_numpy(draws.random((len(self.seeds), k, k))).float()
            climb = curve(before, x, [*[None] * (len(before) - 2), M]).slope()
            # A run that has diverged stays where it is.
            t = PSI_RATES[move.up] * climb.nan_to_num(0, 0, 0) * (1 if move.up else -1)
            after = exponential(before, x, t[:, None, None] * M)

            def random(size: Tensor) -> Layers:
                return exponential(other, x, size[:, None, None] * units[-1])

        far, _ = drift(before, after, x, y)
        control = as_far(random, lambda to: drift(other, to, x, y)[0], far)
        for name, old, new in (
            (move.name, before, after),
            (f"{move.name}, random", other, control),
        ):
            for W, part in zip(self.layers, new, strict=True):
                W[self._rows(name)] = part
            self.told.setdefault(name, []).append(self._told(old, new, x, y, index))

    def _told(
        self, old: Layers, new: Layers, x: Tensor, y: Tensor, index: int
    ) -> dict[str, list[float]]:
        fresh = drawn(self.images.validation, self.seeds, index, self.plan.samples)
        here, there = drift(old, new, x, y), drift(old, new, *fresh)
        said = {"drift": here[0], "log loss": here[1], "fresh drift": there[0]}
        for when, layers in (("before", old), ("after", new)):
            draws = item_generator(Stream.SHARPNESS, 3, index)
            said[f"phi {when}"] = torch.stack(
                [phi(layers, x[..., :200], y[..., :200], DISTANCES, draws) for _ in range(DRAWS)]
            ).mean(0)
            draws = item_generator(Stream.SHARPNESS, 4, index)
            # Of the last hidden layer, as the search: what is above its inputs is a network.
            inputs = leaky(forward(layers, x[..., :200])[-3])
            said[f"psi {when}"] = torch.stack(
                [psi(layers[-2:], inputs, draws) for _ in range(DRAWS)]
            ).mean(0)
        return {key: [float(f"{v:.5g}") for v in value] for key, value in said.items()}

    def judged(self) -> dict[str, Any]:
        """Losses on the training images and the test images, [seeds, variants] each."""
        found = {}
        for which in ("train", "test"):
            part = getattr(self.images, which)
            losses = mean_losses(self.layers, part.X.mT[None], part.y[None])
            found[which] = [float(f"{v:.6g}") for v in losses]
        return found

    def run(self) -> dict[str, Any]:
        """Losses of each epoch from the branching on: [epochs, seeds, variants]."""
        for epoch in range(BRANCHED):
            self.epoch(epoch, [0])
        count = len(self.seeds) * len(self.names)
        self.layers = [W.repeat(count, 1, 1) for W in self.layers]
        looks = [self.judged()]
        for epoch in trange(BRANCHED, self.plan.epochs, desc="branches", leave=False):
            self.epoch(epoch, self.seeds)
            looks.append(self.judged())
        shape = (len(looks), len(self.seeds), len(self.names))
        return {
            "names": self.names,
            "losses": {
                which: np.array([look[which] for look in looks]).reshape(shape).tolist()
                for which in ("train", "test")
            },
            "told": self.told,
        }
