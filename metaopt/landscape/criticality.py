"""Whether the gradient's norm is stationary on the orbit: is one teleport enough?

    residual = max over generators xi of |<H g, X_xi>| / (|H g| |X_xi|) = |P H g| / |H g|

g is the gradient, H the Hessian, X_xi = d/dt exp(t xi) w the velocity along a generator, and P
projects on the space of all velocities. Along the orbit |g|^2 has the slope 2 <H g, X_xi>, so that
the residual is 0 where |g| has a maximum, a minimum or a saddle on the orbit, as where H g is a
multiple of g. It is a cosine: neither a factor of the loss nor one of xi changes it. A teleport to
such a point need not be repeated if gradient flow keeps the residual at 0.

Reference: Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad

from metaopt.landscape.curvature_of_orbit import Direction, Weights, velocity
from metaopt.landscape.sharpness import dot


def hessian_gradient(
    loss: Callable[[dict[str, Tensor]], Tensor], weights: Weights
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """g and H g, by path; differentiable in the weights.

    Args:
        loss: weights by path -> L, a scalar.
        weights: w, by path.
    """
    g = grad(loss)(dict(weights))
    product: dict[str, Tensor] = grad(lambda at: dot(grad(loss)(at), g))(dict(weights))
    return g, product


def alignment(
    loss: Callable[[dict[str, Tensor]], Tensor],
    weights: Weights,
    directions: Sequence[Direction],
) -> Tensor:
    """|<H g, X>| / (|H g| |X|) for one direction X = sum of T w; differentiable in w and T.

    Args:
        loss: weights by path -> L, a scalar.
        weights: w, by path.
        directions: symmetries with generators (see ``curvature_of_orbit``).
    """
    _, product = hessian_gradient(loss, weights)
    X = velocity(weights, directions)
    return dot(product, X).abs() / (dot(product, product) * dot(X, X)).sqrt()


def share(vector: Tensor, velocities: Tensor) -> Tensor:
    """|P v| / |v|, P the projection on the span of some velocities, a scalar.

    Args:
        vector: v, [P].
        velocities: [m, P], not all 0.
    """
    U, S, _ = torch.linalg.svd(velocities.mT, full_matrices=False)
    kept = U[:, S > S.max() * max(velocities.shape) * torch.finfo(S.dtype).eps]
    return torch.linalg.vector_norm(kept.mT @ vector) / torch.linalg.vector_norm(vector)
