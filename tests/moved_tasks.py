"""Tasks of a family before and after random elements of the symmetries that it lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

import metaopt
from metaopt.base.streams import Stream
from metaopt.symmetry.drawing import random_elements
from metaopt.symmetry.groups import Symmetry
from metaopt.symmetry.modules import touches_of
from metaopt.symmetry.touch import weights as moved_weights
from metaopt.tasks.own_batch import LossFamily

STEPS = 3


def losses_after(family: metaopt.Family, listed: Sequence[Symmetry], norm: float = 0.5) -> float:
    """The largest relative change of the loss, in float64, on mini-batches of two tasks.

    Weights are those of tasks, with noise, so that no factor is 0.
    """
    tasks = LossFamily(family, "family").drawn(Stream.TRAIN, 0, 0, 2).to("cpu", torch.float64)
    noise = np.random.default_rng(0)
    before = tuple(
        W + 0.1 * torch.from_numpy(noise.standard_normal(W.shape)) for W in tasks.initial
    )
    elements = random_elements(listed, norm, 0, [torch.device("cpu")] * len(listed))
    touched = touches_of(zip(listed, elements, strict=True))
    assert touched.keys() <= tasks.shapes.keys()
    after = tuple(
        torch.stack(
            [
                moved_weights(one.reshape(shape), touched.get(name, [])).reshape(one.shape)
                for one in W
            ]
        )
        for W, (name, shape) in zip(before, tasks.shapes.items(), strict=True)
    )
    assert all(
        not torch.allclose(old, new)
        for old, new, name in zip(before, after, tasks.shapes, strict=True)
        if name in touched
    )
    changes = []
    for step in range(STEPS):
        seen = tasks.at(step)
        old, new = seen.seen_loss(before), seen.seen_loss(after)
        changes.append(((new - old).abs() / old).max())
    return float(torch.stack(changes).max())


def same_draws(family: metaopt.Family) -> bool:
    """Whether generators in equal states give the same bits."""
    first, second = (family.sample(np.random.default_rng(5)) for _ in range(2))
    one = (*first.weights.values(), *first.data, *first.test)
    other = (*second.weights.values(), *second.data, *second.test)
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
