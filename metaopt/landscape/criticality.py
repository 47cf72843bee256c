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

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad

from metaopt.landscape.data import Data
from metaopt.landscape.products import HessianProducts
from metaopt.landscape.samples import CHECKED, Loss, Samples
from metaopt.landscape.sharpness import dot, shaped
from metaopt.landscape.velocities import Direction, Weights, chosen_symmetries, velocity
from metaopt.symmetry.groups import Group, Symmetry
from metaopt.symmetry.names import short

STEPS = 1000
"""Steps of the projection on all velocities at most."""
LAST = 20
TOLERANCE = 1e-8
"""It ends where these steps change |P v| / |v| by less, absolutely."""


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
    floor = S.max() * max(velocities.shape) * torch.finfo(S.dtype).eps
    kept = U[:, S.gt(floor)]
    return torch.linalg.vector_norm(kept.mT @ vector) / torch.linalg.vector_norm(vector)


@dataclass(frozen=True, eq=False)
class Criticality:
    """How far the gradient's norm is from stationary on the orbit.

    Attributes:
        residual: |P H g| / |H g|, from 0 to 1; 0 if H g is 0.
        by_symmetry: the same over the generators of each symmetry alone, by its name.
        gradient_norm: |g|.
        curvature: g^T H g / |g|^2, the curvature along the gradient; 0 if g is 0.
    """

    residual: float
    by_symmetry: dict[str, float]
    gradient_norm: float
    curvature: float

    def rows(self) -> list[dict[str, str | float]]:
        """A plain dictionary for each symmetry: ``symmetry``, ``residual``."""
        return [{"symmetry": name, "residual": x} for name, x in self.by_symmetry.items()]

    def __str__(self) -> str:
        lines = [f"{value:.3g}  {short(name)}" for name, value in self.by_symmetry.items()]
        head = f"criticality on the orbit: {self.residual:.3g} (0: |grad L| is stationary there)"
        return "\n".join([head, *lines])

    __repr__ = __str__


def criticality(
    model: nn.Module,
    loss: Loss,
    data: Data,
    symmetries: Sequence[Symmetry] | None = None,
) -> Criticality:
    """max over generators xi of |<H g, X_xi>| / (|H g| |X_xi|): is one teleport enough?

    The generators are those of all symmetries together, X_xi = sum of T w. The residual is 0 where
    |grad L| is stationary on the orbit: there a teleport that looks for a larger or smaller
    gradient finds none at first order. It takes one gradient and one Hessian-vector product. The
    model stays as it is.

    Args:
        model: any module.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
        data: a pair (inputs, targets), or an iterable of such pairs that can be run through more
            than once (see ``Samples``).
        symmetries: those to look along, all or some of ``metaopt.symmetries(model)``. None: all
            that are found with the first samples as an example, and act linearly.

    Raises:
        ValueError: if the model has no symmetry that acts linearly, or no parameter that requires a
            gradient, or gradients are not finite.

    References:
        Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 3.3.
    """
    samples = Samples(model, loss, data)
    named = samples.model.named_parameters()
    paths = [path for path, parameter in named if parameter.requires_grad]
    if not paths:
        raise ValueError("no parameter of the model requires a gradient")
    example, _ = next(samples.parts(CHECKED))
    chosen = chosen_symmetries(samples.model, symmetries, example)
    products = HessianProducts(samples, paths)
    g = products.gradient()
    product = products(g[None])[0]
    weights = {path: value.double() for path, value in samples.values(paths).items()}
    vector = shaped(product[None], weights)
    target = {path: value[0] for path, value in vector.items()}
    squared = float(g @ g)
    return Criticality(
        residual=_share(target, weights, chosen),
        by_symmetry={one.name: _share(target, weights, [one]) for one in chosen},
        gradient_norm=squared**0.5,
        curvature=float(g @ product) / squared if squared else 0.0,
    )


def _share(vector: Weights, weights: Weights, symmetries: Sequence[Symmetry]) -> float:
    """|P v| / |v| for the velocities of all generators, by conjugate gradients (CGLS).

    With X the linear map from generators to velocities, it solves min |v - X xi|. |P v| = |X xi|
    grows with every step.

    References:
        Bjorck, Numerical Methods for Least Squares Problems (1996), section 7.4.
    """
    size = float(dot(vector, vector)) ** 0.5
    if size == 0:
        return 0.0
    free = [_zero(symmetry, weights).requires_grad_() for symmetry in symmetries]
    with torch.enable_grad():
        moved = velocity(weights, list(zip(symmetries, _skewed(symmetries, free), strict=True)))
    outputs = [moved[path] for path in weights if moved[path].requires_grad]
    if not outputs:
        return 0.0

    def transposed(x: Weights) -> list[Tensor]:
        seen = [x[path] for path in weights if moved[path].requires_grad]
        found = torch.autograd.grad(
            outputs, free, seen, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return list(found)

    def product(xi: Sequence[Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return velocity(weights, list(zip(symmetries, _skewed(symmetries, xi), strict=True)))

    left = {path: value.clone() for path, value in vector.items()}
    slope = transposed(left)
    direction = slope
    gamma = first = _squared(slope)
    shares = [0.0]
    for _ in range(STEPS):
        if gamma <= torch.finfo(torch.float64).eps ** 2 * first or first == 0:
            break
        q = product(direction)
        alpha = gamma / float(dot(q, q))
        left = {path: value - alpha * q[path] for path, value in left.items()}
        done = {path: vector[path] - value for path, value in left.items()}
        shares.append(float(dot(done, done)) ** 0.5 / size)
        if len(shares) > LAST and shares[-1] - shares[-1 - LAST] < TOLERANCE:
            break
        slope = transposed(left)
        before, gamma = gamma, _squared(slope)
        direction = [s + gamma / before * d for s, d in zip(slope, direction, strict=True)]
    else:
        warnings.warn(
            f"the residual grew by {shares[-1] - shares[-1 - LAST]:.1e} in the last {LAST} of "
            f"{STEPS} steps of its projection",
            stacklevel=3,
        )
    return min(1.0, shares[-1])


def _zero(symmetry: Symmetry, weights: Weights) -> Tensor:
    """The generator 0 of a symmetry."""
    some = next(iter(weights.values()))
    blocks, size = symmetry.blocks, symmetry.size
    shapes = {Group.SCALING: (blocks, size), Group.ROTARY: (blocks, 2)}
    shape = shapes.get(symmetry.group, (blocks, size, size))
    return torch.zeros(shape, dtype=some.dtype, device=some.device)


def _skewed(symmetries: Sequence[Symmetry], generators: Sequence[Tensor]) -> list[Tensor]:
    """The generators, those of orthogonal groups made skew."""
    return [
        (T - T.mT) / 2 if symmetry.group is Group.ORTHOGONAL else T
        for symmetry, T in zip(symmetries, generators, strict=True)
    ]


def _squared(tensors: Sequence[Tensor]) -> float:
    return sum(float(x.square().sum()) for x in tensors)
