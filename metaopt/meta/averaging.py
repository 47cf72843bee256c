"""Averages of phi over the outer loop: what is validated and written, beside what is trained.

The outer loop takes noisy steps; a mean of its last iterates is nearer to what it moves around.

References: Polyak and Juditsky, SIAM Journal on Control and Optimization 30 (1992); the correction
of the start is that of Adam's means, Kingma and Ba, arXiv 1412.6980.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch

from metaopt.rules.composed import MetaOptimizer


class Average(Protocol):
    """The parameters that are validated and written, updated whenever phi is.

    Attributes:
        optimizer: the meta-optimizer at the averaged phi.
    """

    optimizer: MetaOptimizer

    def update(self) -> None:
        """Take note of a step of phi."""

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs, as plain data and tensors; phi itself is not in it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, once phi has been restored."""


class NoAverage:
    """phi as it is.

    Args:
        optimizer: the meta-optimizer that is trained.
    """

    def __init__(self, optimizer: MetaOptimizer) -> None:
        self.optimizer = optimizer

    def update(self) -> None:
        """Take note of a step of phi."""

    def state(self) -> dict[str, Any]:
        """Empty: nothing is averaged."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


class ExponentialAverage:
    """mean_t = sum_{i=1..t} d^(t-i) phi_i / sum_{i=1..t} d^(t-i)

    phi_i is phi after its i-th step: the initialisation has no weight, so the mean is phi_1 at
    first, and that of all iterates until t is of the order of 1 / (1 - d). One step at a time,

        mean_t = mean_{t-1} + (1 - d) / (1 - d^t) (phi_t - mean_{t-1}).

    Args:
        optimizer: the meta-optimizer that is trained.
        decay: d, at least 0 and below 1.
    """

    def __init__(self, optimizer: MetaOptimizer, decay: float) -> None:
        self.optimizer = copy.deepcopy(optimizer)
        self._decay = decay
        self._updates = 0
        self._trained = list(optimizer.parameters())
        self._means = list(self.optimizer.parameters())

    def update(self) -> None:
        """Take note of a step of phi."""
        self._updates += 1
        weight = (1 - self._decay) / (1 - self._decay**self._updates)
        with torch.no_grad():
            for mean, phi in zip(self._means, self._trained, strict=True):
                mean.lerp_(phi, weight)

    def state(self) -> dict[str, Any]:
        """The mean, and how many steps are in it."""
        return {"updates": self._updates, "phi": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._updates = state["updates"]
        self.optimizer.load_state_dict(state["phi"])
