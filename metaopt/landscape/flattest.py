"""The trace of the Gauss-Newton matrix at the flattest point of an orbit: one for all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metaopt.base.streams import Stream, item_generator
from metaopt.landscape.estimate import Estimate
from metaopt.landscape.gauss_newton import is_estimated, sharpness_stack
from metaopt.landscape.noise import quadratic
from metaopt.landscape.samples import Samples
from metaopt.symmetry.balancing import balanced
from metaopt.symmetry.groups import Symmetry

FILL = 1e-12
"""The trace of what is added to a Gauss-Newton matrix that has no flattest point, as a share."""


def least_trace(
    samples: Samples, paths: Sequence[str], symmetries: Sequence[Symmetry] | None
) -> Estimate:
    """min over g of tr G(g w), exact unless a sample has more than 64 outputs.

    Where it is only approached, as elements leave for infinity, it is what they approach, to about
    the square root of ``FILL``.

    Args:
        samples: model, loss and data.
        paths: the parameters by which G is taken.
        symmetries: those of the orbit; None: all that are found with the first samples.

    Raises:
        ValueError: if the model returns no tensor, a sample has more than 4,096 outputs, or the
            loss is not convex in them.
    """
    chosen = list(quadratic(samples, symmetries).values())
    stacks = sharpness_stack(samples, chosen, also=paths)
    moved = {slot.path for symmetry in chosen for slot in symmetry.slots}
    rest = sum(float(x.square().sum()) for path, x in stacks.items() if path not in moved)
    found = balanced(chosen, stacks, "gradients")
    if found.reasons:
        # The least trace is only approached, as elements leave for infinity.
        found = balanced(chosen, _filled(stacks), "gradients")
    return Estimate(rest + found.after, float("nan") if is_estimated(samples) else 0.0)


def _filled(stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stacks with rows of small random numbers, so that nothing in them is singular."""
    numbers = item_generator(Stream.SHARPNESS, 0, 3)
    size = sum(float(x.square().sum()) for x in stacks.values())
    entries = sum(x[0].numel() for x in stacks.values())
    found = {}
    for path, x in stacks.items():
        shape = x.shape[1:]
        count = 1 + 2 * max(shape, default=1) ** 2 // x[0].numel()
        rows = torch.from_numpy(numbers.standard_normal((count, *shape))).to(x)
        found[path] = torch.cat([x, (FILL * size / entries / count) ** 0.5 * rows])
    return found
