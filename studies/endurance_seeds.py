"""For ``endurance``: seeds of a network of ``drop_in_training`` side by side in the inner loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import metaopt
from metaopt.base.global_generators import seeded
from metaopt.base.loss_statistics import diverged
from metaopt.meta.looks import first_order
from metaopt.meta.unroll import start, unroll
from metaopt.rules.composed import MetaOptimizer
from metaopt.tasks.images import Images, shown_and_judged
from metaopt.tasks.own import Task
from metaopt.tasks.own_batch import LossTasks
from studies.drop_in_training import MODELS

NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)


class OfDropIn(Images):
    """A network of ``drop_in_training`` on digits, with weights as its constructor draws them.

    Args:
        model: its name in ``MODELS``.
    """

    def __init__(self, model: str) -> None:
        super().__init__(width=1, unseen=True)
        self.model = model
        self.net = MODELS[model]()
        for module in self.net.modules():
            if isinstance(module, NORMALISATIONS):
                # Running means would be state, which the tasks of a family have none of.
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        self.symmetries = metaopt.symmetries(self.net, example=self.shared[0][:8])

    def sample(self, generator: np.random.Generator) -> Task:
        """One seed: new weights, and the row numbers of images."""
        with seeded(int(generator.integers(2**32))):
            fresh = MODELS[self.model]()
        weights = {name: p.detach() for name, p in fresh.named_parameters()}
        shown, judged = shown_and_judged(generator, self.seen, len(self.shared[1]), self.unseen)
        return Task(weights, (shown,), (judged,))


@dataclass(frozen=True)
class Found:
    """What became of some seeds."""

    losses: list[list[float]]  # test loss at each mark, of each seed
    largest: list[list[float]]  # largest absolute weight until each mark, of each seed
    diverged: int  # seeds
    not_finite: int  # seeds with a loss or a weight that was infinite or NaN

    def joined(self, other: Found) -> Found:
        """Both groups of seeds."""
        return Found(
            [a + b for a, b in zip(self.losses, other.losses, strict=True)],
            [a + b for a, b in zip(self.largest, other.largest, strict=True)],
            self.diverged + other.diverged,
            self.not_finite + other.not_finite,
        )


def run(tasks: LossTasks, optimizer: MetaOptimizer, marks: Sequence[int], every: int) -> Found:
    """Train all tasks side by side to the last mark, and look at them on the way.

    Args:
        tasks: B seeds.
        optimizer: takes the steps.
        marks: inner steps at which losses and weights are told.
        every: steps between two looks; divides all marks.
    """
    seen, losses, largest = [], [], []
    with torch.no_grad():
        state = start(tasks, optimizer, first_order)
        highest = tasks.initial[0].new_zeros(tasks.size)
        while True:
            evaluated = optimizer.evaluated(state.weights, state.optimizer)
            seen.append(tasks.loss(evaluated).double().numpy())
            for W in (*state.weights, *evaluated):
                # NaN stays NaN.
                highest = torch.maximum(highest, W.abs().amax(dim=(1, 2)))
            if state.step in marks:
                losses.append(seen[-1].tolist())
                largest.append(highest.tolist())
            if state.step >= marks[-1]:
                break
            state, _ = unroll(tasks, optimizer, state, every)
    curves = np.stack(seen)
    finite = np.isfinite(curves).all(axis=0) & np.isfinite(highest.numpy())
    return Found(losses, largest, diverged(curves), int((~finite).sum()))
