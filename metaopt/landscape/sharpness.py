"""How much the loss rises around a model's weights.

    rise   E L(w + r d) - L(w),   d isotropic, |d| = 1;   r^2 tr H / (2 P) for small r
    trace  tr H,   H the Hessian of the loss, [P, P]

Directions are isotropic: a vector of normal numbers over all weights, normalised. Each is taken
with its opposite, so that the slope of the loss cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

Weights = Mapping[str, Tensor]
"""Path of a parameter -> its value."""


def isotropic(weights: Weights, count: int, numbers: np.random.Generator) -> dict[str, Tensor]:
    """Unit vectors over all weights together, {path: [count, *shape]}, of the weights' dtype.

    Args:
        weights: by path.
        count: how many.
        numbers: where they come from.
    """
    drawn = torch.from_numpy(
        numbers.standard_normal((count, sum(value.numel() for value in weights.values())))
    )
    return shaped(drawn / drawn.norm(dim=1, keepdim=True), weights)


def shaped(rows: Tensor, weights: Weights) -> dict[str, Tensor]:
    """Rows [m, P] as {path: [m, *shape]}, of the dtype and on the device of the weights."""
    parts = rows.split([value.numel() for value in weights.values()], dim=1)
    return {
        path: part.reshape(len(rows), *value.shape).to(value)
        for part, (path, value) in zip(parts, weights.items(), strict=True)
    }


def expected_rise(
    loss: Callable[[dict[str, Tensor]], Tensor],
    weights: Weights,
    directions: Weights,
    distances: Sequence[float],
    chunk: int | None = None,
) -> Tensor:
    """1/2 sum over signs of L(w +- r d) - L(w), the mean over distances r; differentiable in w.

    Args:
        loss: weights by path -> L, a scalar; a function that ``torch.func.vmap`` can run.
        weights: w, by path.
        directions: {path: [m, *shape]}, as ``isotropic`` draws them.
        distances: r, numbers above 0.
        chunk: directions that go through the loss at a time; None: all.

    Returns:
        A value for each direction, [m].
    """
    start = loss(dict(weights))

    def of_one(direction: dict[str, Tensor]) -> Tensor:
        rises = [
            loss({path: w + r * direction[path] for path, w in weights.items()}) - start
            for size in distances
            for r in (size, -size)
        ]
        return torch.stack(rises).mean()

    found: Tensor = vmap(of_one, chunk_size=chunk)(dict(directions))
    return found


def curvature_along(
    loss: Callable[[dict[str, Tensor]], Tensor],
    weights: Weights,
    directions: Weights,
    chunk: int | None = None,
) -> Tensor:
    """d^T H d for each direction d, [m], H the Hessian of the loss; arguments as of the rise.

    Its mean over directions of random signs, or P times that over isotropic ones, is tr H.
    """

    def of_one(direction: dict[str, Tensor]) -> Tensor:
        def slope(at: dict[str, Tensor]) -> Tensor:
            return dot(grad(loss)(at), direction)

        return dot(grad(slope)(dict(weights)), direction)

    found: Tensor = vmap(of_one, chunk_size=chunk)(dict(directions))
    return found


def dot(x: Weights, y: Weights) -> Tensor:
    """The inner product over all weights, a scalar."""
    return torch.stack([(x[path] * y[path]).sum() for path in x]).sum()
