"""Persistent evolution strategies: meta-gradients without backpropagation, unbiased by truncation.

Antithetic pairs of perturbed phi run side by side through the same trajectories. Each window of
each pair p has a perturbation of its own, and the pair remembers their sum since the trajectory
began:

    e_p ~ N(0, sigma^2 I),   xi_p <- xi_p + e_p   (xi_p = 0 where a trajectory begins)
    dM/dphi ~ 1 / (2 P sigma^2) sum_p xi_p (M(phi + e_p; states of p, +) - M(phi - e_p; .. -))

Each member of each pair has weights and rule states of its own, which continue from window to
window. Summed over the windows of a trajectory, this is an unbiased estimate of the gradient of the
smoothed meta-loss of the whole trajectory; a truncated gradient leaves out the effect of a window
on later ones. The price is variance, and 2 P windows instead of one.

Reference: Vicol, Metz and Sohl-Dickstein, *Unbiased Gradient Estimation in Unrolled Computation
Graphs with Persistent Evolution Strategies*, ICML 2021, arXiv 2112.13835. There each trajectory has
a perturbation of its own; here all trajectories of the meta-batch share those of the P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metaopt.base.streams import Stream, uniforms
from metaopt.meta.looks import Observe
from metaopt.meta.loss import MetaLoss
from metaopt.meta.rows import across, member, side_by_side
from metaopt.meta.unroll import InnerState, unroll
from metaopt.meta.windows import Differentiated, Windows, together
from metaopt.rules.composed import MetaOptimizer, States
from metaopt.tasks.base import Tasks


class PersistentES(Windows):
    """Windows whose meta-gradient is estimated from pairs of perturbed phi.

    Args:
        optimizer: the meta-optimizer; its parameters are phi.
        observe: how weights are looked at; first and second order give the same estimate.
        meta_loss: the meta-loss M of a window.
        sigma: the standard deviation of each perturbation.
        pairs: P, the number of pairs.
        seed: the seed of the perturbations.
    """

    def __init__(
        self,
        optimizer: MetaOptimizer,
        observe: Observe,
        meta_loss: MetaLoss,
        sigma: float,
        pairs: int,
        seed: int,
    ) -> None:
        self.copies = 2 * pairs
        self._optimizer = optimizer
        self._observe = observe
        self._meta_loss = meta_loss
        self._sigma = sigma
        self._pairs = pairs
        self._seed = seed
        self._parameters = [p for p in optimizer.parameters() if p.requires_grad]
        self._taken = 0
        self._xi = self._flat().new_zeros(pairs, len(self._flat()))
        self._tasks: tuple[Tasks, Tasks] | None = None

    def __call__(self, tasks: Tasks, inner: InnerState[States], steps: int) -> Differentiated:
        """K = ``steps`` inner steps from ``inner``, and the estimate of the meta-gradient.

        Args:
            tasks: each of them ``copies`` times in a row.
            inner: the inner state of all copies.
            steps: K.
        """
        own_tasks = self._once(tasks)
        perturbations = self._draw()
        # This makes a new tensor, since a saved state may still hold the old one.
        self._xi = self._xi + perturbations if inner.step > 0 else perturbations
        rules, members = self._optimizer.rules, []
        for copy in range(self.copies):
            pair, sign = copy // 2, (1.0, -1.0)[copy % 2]
            own = across([inner], member(own_tasks.size, self.copies, copy), rules)
            with torch.no_grad(), self._moved_by(sign * perturbations[pair]):
                members.append(self._window(own_tasks, own, steps))
        losses = torch.stack([one.meta_loss for one in members])
        differences = (losses[::2] - losses[1::2]) / (2 * self._pairs * self._sigma**2)
        sizes = [parameter.numel() for parameter in self._parameters]
        gradients = (differences @ self._xi).split(sizes)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter).clone()
        after = across([one.inner for one in members], side_by_side(own_tasks.size), rules)
        shares = [1 / self.copies] * self.copies
        return Differentiated(after, losses.mean(), together(members, shares))

    def state(self) -> dict[str, Any]:
        """Windows taken so far, and the sums of perturbations."""
        return {"taken": self._taken, "xi": self._xi}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._taken = state["taken"]
        self._xi = state["xi"].to(self._xi)

    def _window(self, tasks: Tasks, inner: InnerState[States], steps: int) -> Differentiated:
        after, unrolled = unroll(tasks, self._optimizer, inner, steps, self._observe)
        summary = {} if unrolled.teleports is None else unrolled.teleports.summary()
        return Differentiated(after, self._meta_loss(inner.loss, unrolled.losses), summary)

    def _draw(self) -> Tensor:
        """The perturbations of this window, [P, size of phi]; alike in every process."""
        first, size = self._taken * self._pairs, self._xi.shape[1]
        self._taken += 1
        u = torch.from_numpy(uniforms(Stream.PERTURBATION, self._seed, first, self._pairs, size))
        normal = torch.special.ndtri(u.clamp(min=math.ldexp(1.0, -54)))
        return (self._sigma * normal).to(self._xi)

    def _once(self, tasks: Tasks) -> Tasks:
        """Each task once; cached, to keep the decompositions of its data."""
        if self._tasks is None or self._tasks[0] is not tasks:
            self._tasks = tasks, tasks.select(slice(0, None, self.copies))
        return self._tasks[1]

    def _flat(self) -> Tensor:
        """A copy of phi in one row."""
        return torch.cat([parameter.detach().flatten() for parameter in self._parameters])

    @contextmanager
    def _moved_by(self, perturbation: Tensor) -> Iterator[None]:
        """Within the context phi is perturbed in place; afterwards it is restored."""
        phi = self._flat()
        self._write(phi + perturbation)
        try:
            yield
        finally:
            self._write(phi)

    def _write(self, flat: Tensor) -> None:
        parts = flat.split([parameter.numel() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))
