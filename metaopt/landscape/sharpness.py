"""How much the loss rises around a model's weights.

    rise       E L(w + r d) - L(w),   d isotropic, |d| = 1;   r^2 tr H / (2 P) for small r
    trace      tr H,   H the Hessian of the loss, [P, P]
    eigenvalue the largest of H
    invariant  the least tr G(g w) over the orbit, G the Gauss-Newton matrix

The first three change along the orbit on which the loss stays (Dinh et al., arXiv 1703.04933); the
last one is a property of the whole orbit, in closed form (``symmetry.balancing``).

Directions are isotropic: a vector of normal numbers over all weights, normalised. Each is taken
with its opposite, so that the slope of the loss cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from metaopt.base.streams import Stream, item_generator
from metaopt.landscape.data import Data
from metaopt.landscape.estimate import Estimate, mean_and_error
from metaopt.landscape.flattest import least_trace
from metaopt.landscape.products import ENTRIES, MOST, HessianProducts
from metaopt.landscape.samples import Loss, Samples, plain_attention
from metaopt.landscape.spectrum import extremes, hutchinson, is_small
from metaopt.symmetry.groups import Symmetry

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


MEASURES = ("rise", "trace", "eigenvalue", "invariant")
"""What ``sharpness`` measures."""
SHARE = 0.05
"""The distance, as a share of |w|, if none is given."""
SAMPLES = 512
"""Samples that go through the model at a time, at most."""


@dataclass(frozen=True, eq=False)
class Sharpness(Estimate):
    """How sharp a model's loss is at its weights; what was not measured is NaN or None.

    Attributes:
        mean: E L(w + r d) - L(w), over directions and distances.
        standard_error: of the mean over directions.
        values: the rise along each direction, the mean over its two signs and all distances.
        distances: r.
        loss: L(w).
        trace: tr H.
        eigenvalue: the largest eigenvalue of H.
        invariant: the least trace of the Gauss-Newton matrix on the orbit.
    """

    values: Tensor
    distances: tuple[float, ...]
    loss: float
    trace: Estimate | None
    eigenvalue: Estimate | None
    invariant: Estimate | None

    def __str__(self) -> str:
        lines = [f"loss: {self.loss:.4g}"]
        if len(self.values):
            sizes = ", ".join(f"{r:.3g}" for r in self.distances)
            lines.append(f"rise at distance {sizes}: {super().__str__()}")
        named = {
            "trace of the Hessian": self.trace,
            "largest eigenvalue": self.eigenvalue,
            "least trace on the orbit": self.invariant,
        }
        lines += [f"{name}: {one}" for name, one in named.items() if one is not None]
        return "\n".join(lines)

    __repr__ = __str__


def sharpness(
    model: nn.Module,
    loss: Loss,
    data: Data,
    distances: Sequence[float] | None = None,
    draws: int = 100,
    symmetries: Sequence[Symmetry] | None = None,
    seed: int = 0,
    *,
    measures: Sequence[str] = MEASURES,
) -> Sharpness:
    """How much the loss rises around the weights: four measures of sharpness.

        rise        E over unit vectors d of L(w + r d) - L(w)
        trace       tr H
        eigenvalue  the largest eigenvalue of H
        invariant   min over the orbit of tr G

    H is the Hessian of the mean loss by all parameters that require gradients, and G its
    Gauss-Newton matrix. Directions d are isotropic, each taken with its opposite, so that the
    gradient plays no part; L(w) is subtracted. For small r the rise is r^2 tr H / (2 P), P the
    number of weights; kinks of ReLU are in the rise and not in H. With up to 1,024 parameters H is
    written out, so that trace and eigenvalue are exact; with more the trace is Hutchinson's
    estimate by 32 vectors, and the eigenvalue is found to 1e-4 by Lanczos' method.

    The rise, the trace and the eigenvalue change where the model is teleported. The invariant one
    does not: it is the trace at the flattest point of the orbit, in closed form for scalings,
    general linear groups, and scales and rotations (where elements would have to leave for
    infinity, what they approach, to about 1e-6).

    The model stays as it is.

    Args:
        model: any module, in which a sample has a loss of its own.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
        data: a pair (inputs, targets), or an iterable of such pairs that can be run through more
            than once (see ``Samples``).
        distances: r, numbers above 0, over which the rise is a mean; None: 0.05 |w|.
        draws: how many directions, at least 2.
        symmetries: those of the orbit of the invariant one, of ``metaopt.symmetries(model)``. None:
            all that are found with the first samples as an example.
        seed: of the random numbers, at least 0.
        measures: some of ``rise``, ``trace``, ``eigenvalue`` and ``invariant``.

    Raises:
        ValueError: if a measure is unknown, a distance is not above 0, there are fewer than 2
            draws, no parameter requires a gradient, the model mixes samples (batch normalisation or
            dropout in training), or, for the invariant one, the model returns no tensor, a sample
            has more than 4,096 outputs, or the loss is not convex in them.

    References:
        Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 4.1, where directions lie in one
        orthant and L(w) is not subtracted; Dinh et al., arXiv 1703.04933.
    """
    if unknown := [one for one in measures if one not in MEASURES]:
        raise ValueError(f"measures are {', '.join(MEASURES)}, found {unknown[0]!r}")
    if draws < 2:
        raise ValueError(f"a standard error needs at least 2 draws, found {draws}")
    samples = Samples(model, loss, data)
    named = samples.model.named_parameters()
    paths = [path for path, parameter in named if parameter.requires_grad]
    if not paths:
        raise ValueError("no parameter of the model requires a gradient")
    weights = samples.values(paths)
    if distances is None:
        squared = sum(float(value.double().square().sum()) for value in weights.values())
        distances = [SHARE * squared**0.5]
    if not distances or not all(0 < r < float("inf") for r in distances):
        raise ValueError(f"distances must be finite and above 0, found {list(distances)}")
    sizes = tuple(float(r) for r in distances)
    values = torch.empty(0, dtype=torch.float64)
    if "rise" in measures:
        values = _rises(samples, weights, sizes, draws, seed)
    trace, eigenvalue = _of_hessian(samples, paths, seed, measures)
    invariant = least_trace(samples, paths, symmetries) if "invariant" in measures else None
    mean, error = mean_and_error(values) if len(values) else (float("nan"), float("nan"))
    return Sharpness(mean, error, values, sizes, _loss(samples), trace, eigenvalue, invariant)


def _rises(
    samples: Samples, weights: Weights, sizes: Sequence[float], draws: int, seed: int
) -> Tensor:
    """The rise along each direction, [draws], float64."""
    numbers = item_generator(Stream.SHARPNESS, seed, 0)
    size = sum(value.numel() for value in weights.values())
    chunk = max(1, min(MOST, ENTRIES // size))
    found = []
    for start in range(0, draws, chunk):
        directions = isotropic(weights, min(chunk, draws - start), numbers)
        parts = [
            len(targets)
            / samples.count
            * _rise(samples, inputs, targets, weights, directions, sizes)
            for inputs, targets in samples.parts(SAMPLES)
        ]
        found.append(torch.stack(parts).sum(0))
    return torch.cat(found)


@torch.no_grad()
def _rise(
    samples: Samples,
    inputs: Any,
    targets: Tensor,
    weights: Weights,
    directions: Weights,
    sizes: Sequence[float],
) -> Tensor:
    """Of the loss of one part of the data, [directions], float64."""

    def of_part(at: dict[str, Tensor]) -> Tensor:
        return samples.loss(samples.outputs(at, inputs), targets)

    with plain_attention():
        try:
            return expected_rise(of_part, weights, directions, sizes).double().cpu()
        except RuntimeError:
            # Operations that vmap does not know; if they are not at fault, it comes again.
            count = len(next(iter(directions.values())))
            each = [
                of_part({p: w + sign * r * directions[p][i] for p, w in weights.items()})
                for i in range(count)
                for r in sizes
                for sign in (1, -1)
            ]
            means = torch.stack(each).reshape(count, -1).mean(1)
            return (means - of_part(dict(weights))).double().cpu()


def _of_hessian(
    samples: Samples, paths: Sequence[str], seed: int, measures: Sequence[str]
) -> tuple[Estimate | None, Estimate | None]:
    """tr H and the largest eigenvalue of H, as far as they are asked for."""
    trace, eigenvalue = None, None
    if not {"trace", "eigenvalue"} & set(measures):
        return trace, eigenvalue
    products = HessianProducts(samples, paths)
    some = next(iter(samples.values(paths).values()))
    empty = torch.empty(0, products.size, dtype=torch.float64, device=some.device)
    if is_small(products.size):
        H = products(torch.eye(products.size, dtype=torch.float64, device=some.device))
        largest = float(torch.linalg.eigvalsh((H + H.mT) / 2)[-1])
        found = Estimate(float(H.trace()), 0.0), Estimate(largest, 0.0)
        return (
            found[0] if "trace" in measures else None,
            found[1] if "eigenvalue" in measures else None,
        )
    if "trace" in measures:
        numbers = item_generator(Stream.SHARPNESS, seed, 1)
        trace = Estimate(*hutchinson(products, empty, numbers))
    if "eigenvalue" in measures:
        numbers = item_generator(Stream.SHARPNESS, seed, 2)
        start = torch.from_numpy(numbers.standard_normal(products.size)).to(empty)
        eigenvalue = Estimate(extremes(products, start)[0], 0.0)
    return trace, eigenvalue


@torch.no_grad()
def _loss(samples: Samples) -> float:
    total = 0.0
    for inputs, targets in samples.batches():
        one = samples.loss(samples.outputs({}, inputs), targets)
        total += len(targets) / samples.count * float(one)
    return total
