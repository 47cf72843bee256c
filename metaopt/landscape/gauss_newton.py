"""The sharpness of each parameter's side, by the Gauss-Newton matrix of the mean loss.

    GN = 1/N sum_n J_n^T H_n J_n = sum_r s_r s_r^T,   s = J_n^T L_n / sqrt(N),   L_n L_n^T = H_n

J_n is the Jacobian of one sample's outputs, H_n the Hessian of its loss L_n in its outputs, which
is positive for losses that are convex in the outputs. Along a symmetry J_n moves like a gradient
and H_n stays, so that the rows s move like gradients, and their sum of squares is tr GN. (The trace
of the Hessian is another: it has a term in the curvature of the outputs, which ReLU lacks.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap

from metaopt.base.streams import Stream, generator
from metaopt.landscape.data import tensors_of, with_tensors
from metaopt.landscape.gradients import Full, Gradients
from metaopt.landscape.plain_layers import PerSample
from metaopt.landscape.samples import ENTRIES, Samples, plain_attention, require_finite
from metaopt.landscape.stacks import Stack
from metaopt.symmetry.conserved import parameters_of
from metaopt.symmetry.groups import Symmetry

EXACT = 64
"""Up to so many outputs of a sample each has its row."""
DRAWS = 8
"""With more outputs, rows of a sample."""
MOST_OUTPUTS = 4096
"""Outputs of a sample at most: H_n is one matrix."""


def sharpness_stack(
    samples: Samples, symmetries: Iterable[Symmetry], seed: int = 0, also: Iterable[str] = ()
) -> dict[str, Tensor]:
    """J_n^T L_n / sqrt(N) as a stack {path: [rows, *shape]}, float64.

    It has the moments of all samples in few rows (see ``Stack``), and its sum of squares is the
    trace of the Gauss-Newton matrix of the mean loss. It is exact if a sample has at most 64
    outputs. With more of them L_n is replaced by L_n z for 8 random vectors z of signs, which has
    the same moments on average.

    Args:
        samples: model, loss and data; the model returns one tensor.
        symmetries: symmetries of the model.
        seed: the seed of the random signs, at least 0.
        also: parameters that are to have a stack besides those that the symmetries move.

    Raises:
        ValueError: if the model returns no tensor, a sample has more than 4096 outputs or no
            outputs of its own, or the loss is not convex in the outputs.
    """
    symmetries = list(symmetries)
    paths = dict.fromkeys([*parameters_of(samples.model, symmetries), *also])
    values = samples.values(list(paths))
    if not values:
        return {}
    outputs = _count_outputs(samples)
    each = outputs if outputs <= EXACT else DRAWS
    stacks = {
        path: Stack(path, value, symmetries, samples.count * each) for path, value in values.items()
    }
    numbers = generator(Stream.SHARPNESS, seed)
    source = PerSample(samples, list(values))
    entries = each * sum(v.numel() for p, v in values.items() if p not in source.layers.thin)
    for inputs, targets in samples.parts(max(1, ENTRIES // (entries + outputs**2))):
        mixtures: Tensor | None = None
        if outputs > EXACT:
            signs = 2 * numbers.integers(0, 2, (len(targets), each, outputs)) - 1
            mixtures = torch.from_numpy(signs).to(targets.device).double() / each**0.5
        plain = source.layers.each(inputs, targets)
        with plain_attention():
            roots = _roots(_hessians(samples, inputs, targets), mixtures)
            left = {path: value for path, value in values.items() if path not in plain}
            for path, rows in (_rows(samples, left, inputs, roots) if left else {}).items():
                stacks[path].add(Full(rows.flatten(0, 1)))

        def sums(outputs: Tensor, roots: Tensor = roots) -> Iterable[Tensor]:
            return ((outputs.flatten(1) * row).sum() for row in roots.unbind(1))

        def take(
            found: dict[str, Gradients], _: dict[str, Tensor], paths: Iterable[str] = plain
        ) -> None:
            for path in paths:
                stacks[path].add(found[path])

        source.layers.pull(inputs, len(targets), sums, take)
    return {path: stack.rows() / samples.count**0.5 for path, stack in stacks.items()}


def is_estimated(samples: Samples) -> bool:
    """Whether a sample has more outputs than ``sharpness_stack`` takes exactly."""
    return _count_outputs(samples) > EXACT


def _hessians(samples: Samples, inputs: Any, targets: Tensor) -> Tensor:
    """The second derivatives of the losses of a batch's samples in their outputs, [n, o, o]."""

    def of_one(outputs: Tensor, target: Tensor) -> Tensor:
        def loss(flat: Tensor) -> Tensor:
            return samples.loss(flat.view(1, *outputs.shape), target[None])

        found: Tensor = jacrev(grad(loss))(outputs.flatten())
        return found

    with torch.no_grad():
        outputs = samples.outputs({}, inputs)
    if samples.can_vectorise([]):
        return vmap(of_one)(outputs, targets).detach()
    singles = [of_one(outputs[n], targets[n]) for n in range(len(targets))]
    return torch.stack(singles).detach()


def _rows(
    samples: Samples, values: dict[str, Tensor], inputs: Any, roots: Tensor
) -> dict[str, Tensor]:
    """J_n^T y for the rows y [n, rows, outputs] of each sample: {path: [n, rows, *shape]}."""

    def of_one(leaves: list[Tensor], cotangents: Tensor) -> dict[str, Tensor]:
        one = with_tensors(inputs, (leaf[None] for leaf in leaves))
        outputs, pull = vjp(lambda given: samples.outputs(given, one), values)[:2]
        rows: dict[str, Tensor] = vmap(lambda y: pull(y.view(outputs.shape))[0])(cotangents)
        return rows

    leaves = list(tensors_of(inputs))
    if samples.can_vectorise(list(values)):
        found: dict[str, Tensor] = vmap(of_one)(leaves, roots)
    else:
        singles = [of_one([x[n] for x in leaves], roots[n]) for n in range(len(roots))]
        found = {path: torch.stack([one[path] for one in singles]) for path in values}
    return {path: rows.detach() for path, rows in found.items()}


def _roots(hessians: Tensor, mixtures: Tensor | None) -> Tensor:
    """L^T, or (L z)^T, with L L^T = H: [n, rows, outputs] of [n, outputs, outputs].

    Raises:
        ValueError: if some H has a negative eigenvalue.
    """
    require_finite([hessians])
    eigenvalues, vectors = torch.linalg.eigh(hessians.double())
    largest = eigenvalues.abs().amax()
    if bool(eigenvalues.amin() < -(torch.finfo(hessians.dtype).eps ** 0.5) * largest):
        raise ValueError(
            f"the loss must be convex in the outputs for its Gauss-Newton matrix to be positive, "
            f"found a second derivative of {float(eigenvalues.amin()):.3g}"
        )
    roots = eigenvalues.clamp(min=0).sqrt()[..., None] * vectors.mT
    return (roots if mixtures is None else mixtures @ roots).to(hessians.dtype)


@torch.no_grad()
def _count_outputs(samples: Samples) -> int:
    """The outputs of one sample."""
    inputs, _ = next(iter(samples.parts(1)))
    outputs = samples.outputs({}, inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"sharpness needs a model that returns one tensor, found {type(outputs).__name__}"
        )
    if outputs.numel() > MOST_OUTPUTS:
        raise ValueError(
            f"sharpness needs at most {MOST_OUTPUTS} outputs a sample, found {outputs.numel()}"
        )
    return outputs.numel()
