"""The noise of gradients as symmetries see it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from metaopt.landscape.samples import Samples
from metaopt.landscape.stacks import Stack
from metaopt.symmetry.conserved import parameters_of
from metaopt.symmetry.groups import Symmetry


def gradient_stack(samples: Samples, symmetries: Iterable[Symmetry]) -> dict[str, Tensor]:
    """grad L as a stack {path: [1, *shape]}, float64, of all parameters that symmetries move.

    Args:
        samples: model, loss and data.
        symmetries: symmetries of the model.
    """
    paths = list(parameters_of(samples.model, symmetries))
    return {path: g.double()[None] for path, g in samples.mean_gradient(paths).items()}


def noise_stack(samples: Samples, symmetries: Iterable[Symmetry]) -> dict[str, Tensor]:
    """(g_n - grad L) / sqrt(N) as a stack {path: [rows, *shape]}, float64.

    It has the moments of all samples in few rows (see ``Stack``), and its sum of squares is the
    trace of the covariance of per-sample gradients, Sigma = 1/N sum (g_n - g)(g_n - g)^T.

    Args:
        samples: model, loss and data.
        symmetries: symmetries of the model.

    Raises:
        ValueError: if there are fewer than 2 samples, or a sample has no gradient of its own.
    """
    if samples.count < 2:
        raise ValueError(f"noise needs at least 2 samples, found {samples.count}")
    symmetries = list(symmetries)
    paths = list(parameters_of(samples.model, symmetries))
    mean = samples.mean_gradient(paths)
    count = samples.count
    stacks = {path: Stack(path, mean[path], symmetries, count) for path in paths}
    for each in samples.per_sample(paths):
        for path, gradients in each.items():
            stacks[path].add((gradients - mean[path]).double() / count**0.5)
    return {path: stack.rows() for path, stack in stacks.items()}
