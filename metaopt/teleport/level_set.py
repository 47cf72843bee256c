"""Teleports without a symmetry: the largest gradient where the loss is no larger than it is.

    max log |g(x)|   subject to   L(x) <= L(w),   g = grad L,   q = H g / |g|^2 = grad log |g|

    x' = x + rho q - v g,   v = max(0, (rho <g, q> + L(x) - L(w)) / |g|^2)

This is sequential quadratic programming: the step along q is followed by one back along g to where
the loss, to first order, is L(w) again. It needs products of the Hessian H with vectors alone. A
step is taken if it raises the merit log |g| - gamma (L(x) - L(w))_+; rho doubles after it, and
falls to a quarter after one that is not. At a solution q is a multiple of g, which the residual
|q - (<g, q> / |g|^2) g|^2 tells; there the gradient is Newton's direction.

Level sets of losses that stay small far away, as those of most networks, have no largest gradient:
``radius`` bounds |x - w|.

References:
    Mishkin, Bietti and Gower, Level Set Teleportation: An Optimization Perspective, arXiv
    2403.03362.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.landscape.products import HessianProducts
from metaopt.landscape.samples import Samples
from metaopt.symmetry.modules import tensor_at

RATE = 0.1
"""rho of the first step, by default."""
RESIDUAL = 1e-6
"""The residual at which the search ends."""
RETURNS = 20
"""Newton steps back to the level set, at most."""
ROUNDING = 64
"""Units of rounding of |L(w)| by which a point may end above L(w)."""


@dataclass(frozen=True)
class Steepest:
    """Where a search along a level set ended.

    Attributes:
        weights: x by path, of the parameters' dtype.
        squared_before: |grad L(w)|^2.
        squared_after: |grad L(x)|^2.
        loss_change: L(x) - L(w).
        distance: |x - w|.
        residual: |q - (<g, q> / |g|^2) g|^2 at the last point where it was computed.
        gradients: how often the gradient was computed, and products of the Hessian.
    """

    weights: dict[str, Tensor]
    squared_before: float
    squared_after: float
    loss_change: float
    distance: float
    residual: float
    gradients: int


@dataclass(frozen=True)
class _Here:
    """A point with its loss and gradient, and by how much a loss may differ by rounding."""

    x: Tensor
    loss: float
    g: Tensor
    slack: float

    @property
    def log_norm(self) -> float:
        norm = float(self.g.norm())
        return math.log(norm) if norm > 0 else -math.inf


class _Level:
    """The loss as a function of all trained parameters as one row, float64.

    The model's parameters hold the point while it is looked at.
    """

    def __init__(self, samples: Samples) -> None:
        named = samples.model.named_parameters()
        self.paths = [path for path, parameter in named if parameter.requires_grad]
        self.samples = samples
        self.parameters = [tensor_at(samples.model, path) for path in self.paths]
        self._product = HessianProducts(samples, self.paths)
        self.count = 0
        eps = max((torch.finfo(p.dtype).eps for p in self.parameters), default=0.0)
        self._eps = ROUNDING * eps

    @torch.no_grad()
    def go(self, x: Tensor) -> None:
        parts = x.split([p.numel() for p in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            # Unnoticed by graphs that still wait for their backward pass.
            parameter.data.copy_(part.view_as(parameter))

    def row(self) -> Tensor:
        return torch.cat([p.detach().flatten().double() for p in self.parameters])

    def at(self, x: Tensor) -> _Here:
        """Loss and gradient at the point nearest to x that the parameters' dtype has."""
        self.go(x)
        self.count += 1
        loss, gradient = 0.0, torch.zeros_like(x)
        for inputs, targets in self.samples.batches():
            values = {p: v.requires_grad_() for p, v in self.samples.values(self.paths).items()}
            share = len(targets) / self.samples.count
            with torch.enable_grad():
                part = share * self.samples.loss(self.samples.outputs(values, inputs), targets)
                found = torch.autograd.grad(
                    part, list(values.values()), allow_unused=True, materialize_grads=True
                )
            loss += float(part.detach())
            gradient += torch.cat([G.flatten().double() for G in found])
        return _Here(self.row(), loss, gradient, self._eps * abs(loss))

    def curvature(self, here: _Here) -> Tensor:
        """q = H g / |g|^2."""
        self.go(here.x)
        self.count += 1
        return self._product(here.g[None])[0] / (here.g @ here.g)


def steepest(
    samples: Samples, steps: int = 50, rate: float | None = None, radius: float | None = None
) -> Steepest:
    """Search for the largest gradient on the sub-level set of a model's loss.

    The model's parameters are as they were when it returns.

    Args:
        samples: the model, the loss and the data.
        steps: points to try, at least 1; each costs a gradient, and a Hessian-vector product if it
            is taken.
        rate: rho of the first step; None: 0.1.
        radius: the bound on |x - w|; None: none.

    Raises:
        ValueError: if no parameter requires a gradient, or the gradient is 0 or not finite.
    """
    level = _Level(samples)
    if not level.paths:
        raise ValueError("no parameter of the model requires a gradient")
    saved = [p.detach().clone() for p in level.parameters]
    try:
        return _searched(level, level.row(), steps, RATE if rate is None else rate, radius)
    finally:
        for parameter, value in zip(level.parameters, saved, strict=True):
            parameter.data.copy_(value)


def _searched(level: _Level, w: Tensor, steps: int, rho: float, radius: float | None) -> Steepest:
    start = here = best = level.at(w)
    if not bool(start.g.isfinite().all()) or float(start.g.norm()) == 0:
        raise ValueError("the gradient must be finite and not 0 to search for a larger one")
    q = level.curvature(here)
    gamma, residual, is_new = 0.0, _residual(here.g, q), True
    for _ in range(steps):
        if residual <= RESIDUAL and here.loss <= start.loss + start.slack:
            break
        squared = float(here.g @ here.g)
        # The multiplier of the constraint: a penalty above it makes the merit exact.
        gamma = max(gamma, 2 * max(0.0, float(here.g @ q)) / squared)
        back = max(0.0, (rho * float(here.g @ q) + here.loss - start.loss) / squared)
        trial = level.at(_within(here.x + rho * q - back * here.g, w, radius))
        if _merit(trial, start, gamma) > _merit(here, start, gamma):
            here, rho, is_new = trial, 2 * rho, True
        else:
            rho, is_new = rho / 4, False
        if is_new:
            if here.loss <= start.loss + start.slack and here.log_norm > best.log_norm:
                best = here
            q = level.curvature(here)
            residual = _residual(here.g, q)
        if rho < 1e-12:
            break
    end = _returned(level, here, start, w, radius)
    if end.loss <= start.loss + start.slack and end.log_norm > best.log_norm:
        best = end
    parts = best.x.split([p.numel() for p in level.parameters])
    shaped = zip(level.paths, level.parameters, parts, strict=True)
    return Steepest(
        weights={path: part.view_as(p).to(p.dtype) for path, p, part in shaped},
        squared_before=float(start.g @ start.g),
        squared_after=float(best.g @ best.g),
        loss_change=best.loss - start.loss,
        distance=float((best.x - w).norm()),
        residual=residual,
        gradients=level.count,
    )


def _returned(level: _Level, here: _Here, start: _Here, w: Tensor, radius: float | None) -> _Here:
    """Newton steps along the gradient, until the loss is no larger than it was."""
    for _ in range(RETURNS):
        above = here.loss - start.loss
        if above <= start.slack:
            break
        step = (1 + 1e-9) * above / float(here.g @ here.g)
        here = level.at(_within(here.x - step * here.g, w, radius))
    return here


def _within(x: Tensor, w: Tensor, radius: float | None) -> Tensor:
    if radius is None:
        return x
    far = float((x - w).norm())
    return x if far <= radius else w + radius / far * (x - w)


def _merit(here: _Here, start: _Here, gamma: float) -> float:
    found = here.log_norm - gamma * max(0.0, here.loss - start.loss)
    return found if math.isfinite(found) else -math.inf


def _residual(g: Tensor, q: Tensor) -> float:
    off = q - (g @ q) / (g @ g) * g
    return float(off @ off)
