"""The course of fast geometric ensembling: rate, loss, error and distance by step; its figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.landscape.orbit_figure import write_figure


@dataclass(frozen=True, eq=False)
class Trace:
    """Quantities by step, counted from 1; float64 on the CPU, steps int64.

    Attributes:
        rate: [steps], the learning rate of each step.
        loss: [steps], of the mini-batch of the step, before it.
        error: [steps], the share of that mini-batch that is classified wrongly; NaN where targets
            are no classes.
        distance: [steps], |w - w_start| after the step, over all parameters that are trained.
        members: [M], the steps after which members were collected.
        watched: [W], the steps after which the data that are watched were measured, from 0 on.
        watched_loss: [W], the loss on them, in evaluation mode.
        watched_error: [W], the error on them.
    """

    rate: Tensor
    loss: Tensor
    error: Tensor
    distance: Tensor
    members: Tensor
    watched: Tensor
    watched_loss: Tensor
    watched_error: Tensor

    def plot(self, path: str | Path | None = None) -> Any:
        """A figure of rate, error and distance from the start by step, with a dot at each member.

        The error is that of the data that were watched, if there were any, and of mini-batches
        otherwise; where targets are no classes it is the loss.

        Args:
            path: a file that ends with .png, .pdf or .svg; None: none is written.

        Returns:
            The ``matplotlib.figure.Figure``, which a notebook shows.

        Raises:
            ValueError: if the path ends otherwise.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.2), layout="constrained")
        axes = figure.subplots(1, 3)
        steps = _steps(len(self.rate))
        _curve(axes[0], steps, self.rate, self.members)
        axes[0].set_title("learning rate", fontsize=10)
        where, values, title = self._shown()
        _curve(axes[1], where, values, self.members)
        axes[1].set_title(title, fontsize=10)
        _curve(axes[2], steps, self.distance, self.members)
        axes[2].set_title("distance from the start, |w - w₀|", fontsize=10)
        for axis in axes:
            axis.set_xlabel("step")
            axis.grid(alpha=0.3)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
        if path is not None:
            write_figure(figure, path)
        return figure

    def _shown(self) -> tuple[Tensor, Tensor, str]:
        """Where, what and under which title the panel in the middle shows."""
        classes = not bool(self.error.isnan().all())
        name = "error" if classes else "loss"
        if len(self.watched):
            values = self.watched_error if classes else self.watched_loss
            return self.watched, values, f"{name} on the data that are watched"
        values = self.error if classes else self.loss
        return _steps(len(self.rate)), values, f"{name} of mini-batches"


def _steps(count: int) -> Tensor:
    return torch.arange(1, count + 1)


def _curve(axis: Any, steps: Tensor, values: Tensor, members: Tensor) -> None:
    axis.plot(steps.numpy(), values.numpy(), linewidth=1.4)
    at = torch.isin(steps, members)
    axis.plot(steps[at].numpy(), values[at].numpy(), "o", color="C3", markersize=5)
