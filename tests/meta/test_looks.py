"""Losses are judged at averaged iterates, whether or not data are kept apart for it."""

from __future__ import annotations

import torch
from cases import tasks
from families import Logistic, draw

from metaopt.base.stopwatch import UNTIMED
from metaopt.meta.looks import as_judged, first_order, judging
from metaopt.tasks.config import TaskConfig


def test_the_loss_is_that_of_the_weights_that_are_evaluated() -> None:
    for drawn in (tasks(TaskConfig(), 2), draw(Logistic(), count=2)):
        at = tuple(0.5 * W for W in drawn.initial)
        for observe in (as_judged(first_order), judging(UNTIMED)):
            here, seen = observe(drawn.at(0), drawn.initial)
            there, same = observe(drawn.at(0), drawn.initial, None, at)
            torch.testing.assert_close(there, drawn.at(0).loss(at))
            assert not torch.allclose(here, there)
            # What rules see is the gradient where the weights are.
            for G, G_same in zip(seen.grads, same.grads, strict=True):
                assert torch.equal(G, G_same)
