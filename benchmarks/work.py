"""What is timed: windows of meta-training and rollouts of evaluation, of any size.

A trajectory has 100 steps. Where ten windows of all trajectories take too long, a trajectory of
fewer windows is run, with its draw of tasks, and its time scaled up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from metaopt.base.config import load
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer

Mode = Literal["meta-training", "evaluation"]
WHOLE = "meta.horizon={kind: fixed}"
"""Trajectories of full length, so that as many windows are as much work."""


@dataclass(frozen=True)
class Work:
    """One configuration at one meta-batch.

    Attributes:
        config: its file.
        mode: meta-training (outer steps) or evaluation (rollouts without a graph).
        batch: trajectories side by side.
        overrides: further ``key.sub=value``.
    """

    config: str
    mode: Mode
    batch: int
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For tables: the file, and what was set."""
        return " ".join([self.config.removesuffix(".yaml"), *self.overrides])

    def loaded(self, extra: Sequence[str] = ()) -> TrainConfig:
        """The configuration."""
        return load(TrainConfig, self.config, [WHOLE, *self.overrides, *self._sizes, *extra])

    @property
    def _sizes(self) -> tuple[str, ...]:
        # The other side of the run is made small, since a trainer always has both.
        other = "validation.tasks=1" if self.mode == "meta-training" else "meta.batch=1"
        own = "meta.batch" if self.mode == "meta-training" else "validation.tasks"
        return (f"{own}={self.batch}", other)

    @property
    def windows_of_trajectory(self) -> int:
        """How many windows a trajectory has."""
        meta = self.loaded().meta
        return -(-meta.steps // meta.unroll)

    def ready(self, windows: int, device: torch.device) -> Callable[[], object]:
        """What runs a trajectory of ``windows`` windows of all ``batch`` trajectories."""
        steps = windows * self.loaded().meta.unroll
        trainer = MetaTrainer(self.loaded([f"meta.steps={steps}"]), device)
        if self.mode == "evaluation":
            return trainer.validate

        def train() -> None:
            for _ in range(windows):
                trainer.outer_step()

        return train


@dataclass(frozen=True)
class Piece:
    """As much work as one measurement takes at least.

    Attributes:
        size: what grows from piece to piece, e.g. the meta-batch.
        work: what is done.
        windows: how many of it.
    """

    size: int
    work: Work
    windows: int = 1

    def ready(self, device: torch.device) -> Callable[[], object]:
        """What runs it."""
        return self.work.ready(self.windows, device)
