"""Running means of gradients, and what is made of them in the memory that they took.

Memory that is new costs more than the numbers in it do: where no graph is kept, results are written
where they stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def running_means(G: Tensor, old: Tensor, decays: Sequence[float]) -> Tensor:
    """m^d <- d m^d + (1 - d) G for each decay d, [B, n, P].

    Args:
        G: the gradient, [B, 1, P].
        old: m before it, [B, n, P].
        decays: d of each, Python numbers: a tensor of them would have to be copied to the device.
    """
    ones = [1] * len(decays)
    rows = old.split_with_sizes(ones, dim=1)
    if torch.is_grad_enabled():
        new = [torch.lerp(G, mean, decay) for mean, decay in zip(rows, decays, strict=True)]
        return torch.cat(new, dim=1)
    means = torch.empty_like(old)
    places = means.split_with_sizes(ones, dim=1)
    for mean, decay, place in zip(rows, decays, places, strict=True):
        torch.lerp(G, mean, decay, out=place)
    return means


def means_over(m: Tensor, G: Tensor, root: Tensor) -> Tensor:
    """The means and the gradient over the root of squares: [B, n + 1, P].

    Args:
        m: the means, [B, n, P].
        G: the gradient, [B, 1, P].
        root: [B, 1, P].
    """
    both = torch.cat([m, G], dim=1)
    return both / root if torch.is_grad_enabled() else both.div_(root)


def shrinking(W: Tensor, G: Tensor, by: Tensor) -> Tensor:
    """by W where there is a gradient, 0 elsewhere: what a learned decay moves W by.

    Args:
        W: weights, [B, out, rest].
        G: their gradient, of the same shape.
        by: the factor, below 0, [B, 1, 1].
    """
    # In numbers: tensors of truth values are several times as slow.
    moves = torch.ne(G.detach(), 0, out=torch.empty_like(W, requires_grad=False))
    return moves.mul_(W).mul_(by)
