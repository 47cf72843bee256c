"""Teleports of stacks: the action through the data, its ascent, and scaling in closed form.

Hidden layer l has the weights V that make it and U that read it. The action of an element I + T on
images X is V -> (I + T) V, U -> U s(VX) s((I + T)VX)^+, X what V's layer is given: outputs are kept
as well as least squares can, which is exactly only for as many images as the layer has units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.streams import Stream, item_generator
from studies.teleport.stack import (
    Layers,
    first,
    forward,
    leaky,
    losses,
    slope,
    squared_norm,
)

Objective = Callable[[Layers], tuple[Tensor, Layers]]
"""Of weights: the value of each run [R], and its gradient in the weights."""


def gradient_norm(x: Tensor, y: Tensor) -> Objective:
    """|grad L|^2 on these images and its gradient 2 H grad L: x [B, n, S], y [B, S]."""

    def objective(layers: Layers) -> tuple[Tensor, Layers]:
        leaves = [W.detach().requires_grad_() for W in layers]
        with torch.enable_grad():
            loss = losses(forward(leaves, x)[-1], y).sum()
            square = squared_norm(list(torch.autograd.grad(loss, leaves, create_graph=True)))
            slopes = torch.autograd.grad(square.sum(), leaves)
        return square.detach(), list(slopes)

    return objective


def _given(layers: Layers, x: Tensor, i: int) -> Tensor:
    """V X of hidden layer i."""
    z = first(layers[0], x)
    for W in layers[1 : i + 1]:
        z = W @ leaky(z)
    return z


def least_squares(A: Tensor, B: Tensor) -> Tensor:
    """A^+ B; anything for runs that have diverged, whose weights are not finite anyway."""
    return torch.linalg.lstsq(A.nan_to_num(0, 0, 0), B.nan_to_num(0, 0, 0)).solution


def act(layers: Layers, x: Tensor, generators: Sequence[Tensor]) -> Layers:
    """(I + T_l) of all hidden layers, one after the other from the first: [R, k, k] each.

    Raises:
        ValueError: where there is not one generator for each hidden layer.
    """
    moved = list(layers)
    for i, (T, _) in enumerate(zip(generators, layers[:-1], strict=True)):
        z = _given(moved, x, i)
        before, after = leaky(z).double(), leaky(z + T @ z).double()
        target = moved[i + 1].double() @ before
        fit = least_squares(after.mT, target.mT).mT
        moved[i] = moved[i] + T @ moved[i]
        moved[i + 1] = fit.to(z.dtype)
    return moved


def pulled_back(layers: Layers, x: Tensor, slopes: Layers) -> list[Tensor]:
    """The gradient in T_l at T = 0 of what has the gradient ``slopes`` in the weights.

    V moves by T V, and U by -U (s'(VX) * T V X) s(VX)^+ to first order.
    """
    found = []
    for i in range(len(layers) - 1):
        z = _given(layers, x, i)
        read = (slopes[i + 1].mT @ layers[i + 1]).double()
        back = least_squares(leaky(z).double(), read).mT.to(z.dtype)
        found.append(slopes[i] @ layers[i].mT - (slope(z) * back) @ z.mT)
    return found


def random_direction(seeds: Sequence[int], index: int, k: int) -> Tensor:
    """Normal matrices of Frobenius norm 1, [seeds, k, k], a draw of each seed's own."""
    T = torch.stack(
        [
            torch.from_numpy(
                item_generator(Stream.RANDOM_GENERATORS, seed, index).standard_normal((k, k))
            )
            for seed in seeds
        ]
    ).float()
    return T / torch.linalg.matrix_norm(T, keepdim=True)


@dataclass(frozen=True)
class Found:
    """A search: where it ended, and its path."""

    layers: Layers
    norms: list[Tensor]
    """Of each step and hidden layer the Frobenius norm of T, [steps, R] each, 0 once stopped."""
    values: Tensor
    """Of the objective, before the first step and after each, [steps + 1, R]."""


def search(
    layers: Layers,
    x: Tensor,
    objective: Objective,
    rate: Tensor,
    steps: int = 10,
    stop: float = 100.0,
) -> Found:
    """Steps T_l = rate dF/dT_l at T = 0, of all hidden layers at once.

    Args:
        layers: where it begins.
        x: the images that the action is through, [B, n, S].
        objective: F; it is maximised, or minimised where the rate is negative.
        rate: of each run, [R].
        steps: at most.
        stop: a run stays where it is from where F is above this.
    """
    norms: list[list[Tensor]] = [[] for _ in layers[:-1]]
    values = []
    for step in range(steps + 1):
        value, slopes = objective(layers)
        values.append(value)
        if step == steps:
            break
        going = torch.where(value <= stop, rate, 0.0)[:, None, None].to(x.dtype)
        generators = [going * T for T in pulled_back(layers, x, slopes)]
        for kept, T in zip(norms, generators, strict=True):
            kept.append(torch.linalg.matrix_norm(T))
        # A run that has stopped is not fitted again.
        moved = act(layers, x, generators)
        layers = [torch.where(going == 0, W, new) for W, new in zip(layers, moved, strict=True)]
    return Found(layers, [torch.stack(kept) for kept in norms], torch.stack(values))


def follow(layers: Layers, x: Tensor, directions: Sequence[Tensor], norms: list[Tensor]) -> Layers:
    """As many steps of the same norms along fixed directions of norm 1, [R, k, k] each."""
    for sizes in zip(*norms, strict=True):
        generators = [
            size[:, None, None].to(x.dtype) * D for size, D in zip(sizes, directions, strict=True)
        ]
        layers = act(layers, x, generators)
    return layers


def best_scales(slopes: Layers, bounds: Sequence[Tensor], sweeps: int = 50) -> list[Tensor]:
    """t of each hidden unit, |t| = bound, at which the squared gradient norm is greatest.

    Rows that make a unit are scaled by e^t and columns that read it by e^-t, so that the squared
    norm is a e^-2t + b e^2t, convex: its maximum over |t| <= bound is at an end, at +bound where
    b > a. Layers are swept, since a and b depend on the neighbours' t.

    Args:
        slopes: gradients, [R, out, in] for each layer.
        bounds: of each hidden layer's |t|, [R] each.

    Returns:
        [R, k] for each hidden layer.
    """
    squares = [(G * G) for G in slopes]
    scales = [torch.zeros_like(S.sum(-1)) for S in squares[:-1]]
    for _ in range(sweeps):
        before = [t.clone() for t in scales]
        for i, bound in enumerate(bounds):
            a, b = squares[i], squares[i + 1]
            if i > 0:
                a = a * (2 * scales[i - 1]).exp()[:, None]
            if i + 1 < len(scales):
                b = b * (-2 * scales[i + 1]).exp()[..., None]
            up = b.sum(-2) > a.sum(-1)
            scales[i] = torch.where(up, bound[:, None], -bound[:, None])
        if all(torch.equal(one, other) for one, other in zip(before, scales, strict=True)):
            break
    return scales


def factors(scales: Sequence[Tensor]) -> list[Tensor]:
    """What each layer's weights are multiplied by, [R, out, in] or what broadcasts to it."""
    none = torch.zeros(len(scales[0]), 1, 1, dtype=scales[0].dtype)
    rows = [t[..., None] for t in scales] + [none]
    columns = [none] + [t[:, None] for t in scales]
    return [(row - column).exp() for row, column in zip(rows, columns, strict=True)]


def drift(before: Layers, after: Layers, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """How far outputs moved, and log of the loss after over before: [R] each.

    The first is |f' - f| / (|f| + |Y|), f logits and Y labels as 0 and 1.
    """
    old, new = forward(before, x)[-1], forward(after, x)[-1]
    whole = old.square().sum((-2, -1)).sqrt() + y.shape[-1] ** 0.5
    moved = (new - old).square().sum((-2, -1)).sqrt() / whole
    return moved, (losses(new, y) / losses(old, y)).log()
