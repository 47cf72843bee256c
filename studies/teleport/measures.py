"""Sharpness and curvature of stacks: the published recipes as they are, and what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

from studies.teleport.action import Objective, least_squares
from studies.teleport.stack import Layers, first, forward, gradients, leaky, losses, slope

COUNT = 200
"""Batches of a measure."""
RADIUS = 1.0
"""Of the displacements of ``increase``."""


def directions(like: Layers, draws: Generator, uniform: bool) -> Layers:
    """Of norm 1 in all weights together: of uniform [0, 1) numbers as published, or isotropic."""
    found = []
    for W in like:
        draw = draws.random if uniform else draws.standard_normal
        found.append(torch.from_numpy(draw(tuple(W.shape), dtype="float32")).to(W.dtype))
    norm = sum((D.square().sum((1, 2)) for D in found), torch.zeros(())).sqrt()
    return [D / norm[:, None, None] for D in found]


def along(
    layers: Layers, moves: Layers, x: Tensor, y: Tensor, distances: Sequence[float]
) -> Tensor:
    """L(w + t d), [distances, R], d the moves: x [B, n, S], y [B, S]."""
    # The first layer is linear in t, and nearly all of the work.
    z, dz = first(layers[0], x), first(moves[0], x)
    found = []
    for t in distances:
        out = z + t * dz
        for W, D in zip(layers[1:], moves[1:], strict=True):
            out = (W + t * D) @ leaky(out)
        found.append(losses(out, y))
    return torch.stack(found)


def phi(
    layers: Layers, x: Tensor, y: Tensor, distances: Sequence[float], draws: Generator
) -> Tensor:
    """One batch of the published sharpness, [R]: the mean of L(w + t d), L(w) not subtracted."""
    return along(layers, directions(layers, draws, uniform=True), x, y, distances).mean(0)


def increase(
    layers: Layers, x: Tensor, y: Tensor, draws: Generator, radius: float = RADIUS
) -> Tensor:
    """One batch of an honest sharpness, [R]: (L(w + r d) + L(w - r d)) / 2 - L(w), d isotropic."""
    moves = directions(layers, draws, uniform=False)
    ends = along(layers, moves, x, y, (radius, 0.0, -radius))
    return (ends[0] + ends[2]) / 2 - ends[1]


def phi_of(
    x: Tensor, y: Tensor, distances: Sequence[float], count: int, draws: Generator
) -> Objective:
    """The published sharpness with its gradient, other directions whenever it is asked."""

    def objective(layers: Layers) -> tuple[Tensor, Layers]:
        value = torch.zeros(len(layers[0]), dtype=x.dtype)
        total = [torch.zeros_like(W) for W in layers]
        for _ in range(count):
            moves = directions(layers, draws, uniform=True)
            value += along(layers, moves, x, y, distances).sum(0)
            for t in distances:
                there = [W + t * D for W, D in zip(layers, moves, strict=True)]
                for kept, G in zip(total, gradients(there, x, y), strict=True):
                    kept += G
        share = 1 / (count * len(distances))
        return value * share, [G * share for G in total]

    return objective


def trace(layers: Layers, x: Tensor, y: Tensor) -> Tensor:
    """The trace of the Hessian of the mean loss, [R], exactly: x [B, n, S].

    Of networks that are piecewise linear in each layer's weights, blocks on the diagonal of the
    Hessian are those of the Gauss-Newton matrix, E sum_c p_c |grad of the loss for label c|^2.
    Labels do not enter.
    """
    z = forward(layers, x)
    p = z[-1].softmax(-2)
    inputs = x.square().sum(-2)  # [B, S]
    groups = len(x)
    total = torch.zeros(len(layers[0]), dtype=x.dtype)
    for c in range(p.shape[-2]):
        d = p.clone()
        d[:, c] -= 1
        square = torch.zeros_like(p[:, c])
        for W, before in zip(reversed(layers[1:]), reversed(z[:-1]), strict=True):
            square += d.square().sum(-2) * leaky(before).square().sum(-2)
            d = (W.mT @ d) * slope(before)
        last = d.square().sum(-2).view(groups, -1, d.shape[-1]) * inputs[:, None]
        square += last.view_as(square)
        total += (p[:, c] * square).mean(-1)
    return total


@dataclass(frozen=True)
class Curve:
    """Derivatives of exp(tM).w at t = 0: lists of what each layer's weights have, [R, out, in]."""

    first: Layers
    second: Layers
    third: Layers

    def products(self) -> tuple[Tensor, ...]:
        """a = |g'|^2, b = <g', g''>, c = |g''|^2, <g', g'''>, <g'', g'''>: [R] each."""

        def product(one: Layers, other: Layers) -> Tensor:
            pairs = zip(one, other, strict=True)
            return sum(((A * B).sum((1, 2)) for A, B in pairs), torch.zeros(()))

        g, h, k = self.first, self.second, self.third
        return product(g, g), product(g, h), product(h, h), product(g, k), product(h, k)

    def curvature(self) -> Tensor:
        """kappa = sqrt(a c - b^2) / a^1.5: [R]."""
        a, b, c, _, _ = self.products()
        return (a * c - b * b).clamp_min(0).sqrt() / a**1.5

    def slope(self) -> Tensor:
        """d kappa / dt: [R]."""
        a, b, c, gk, hk = self.products()
        below = (a * c - b * b).clamp_min(1e-30)
        change = 2 * b * c + 2 * a * hk - 2 * b * (c + gk)
        return change / (2 * below.sqrt() * a**1.5) - 3 * b * below.sqrt() / a**2.5


def curve(layers: Layers, x: Tensor, generators: Sequence[Tensor | None]) -> Curve:
    """Of the action V -> s^-1(e^tM s(V h)) h^+, U -> U e^-tM, of all hidden layers at once.

    As published: a layer between two groups has the sum of what each does to it, without the cross
    term.

    Args:
        layers: the weights.
        x: images, [B, n, S].
        generators: M of each hidden layer, [R, k, k], None for those that stay.
    """
    orders: list[Layers] = [[torch.zeros_like(W) for W in layers] for _ in range(3)]
    z = forward(layers, x)
    for i, M in enumerate(generators):
        if M is None:
            continue
        power = M
        for order, kept in enumerate(orders):
            made = (power @ leaky(z[i])) / slope(z[i])
            kept[i] += _fitted(made, x, z, i)
            kept[i + 1] += (-1) ** (order + 1) * layers[i + 1] @ power
            power = power @ M
    return Curve(*orders)


def _fitted(made: Tensor, x: Tensor, z: Layers, i: int) -> Tensor:
    """made h^+, h what hidden layer i is given: [R, k, S] -> [R, k, in]."""
    if i > 0:
        return least_squares(leaky(z[i - 1]).double().mT, made.double().mT).mT.to(made.dtype)
    # What a run that has diverged is given is not finite.
    inverse = torch.linalg.pinv(x.double().nan_to_num(0, 0, 0)).to(made.dtype)  # [B, S, n]
    grouped = made.reshape(len(x), -1, made.shape[-1]) @ inverse
    return grouped.view(*made.shape[:2], -1)


def unit_generators(layers: Layers, draws: Generator) -> list[Tensor]:
    """M of uniform [0, 1) entries, of Frobenius norm 1, for each hidden layer."""
    found = []
    for W in layers[:-1]:
        runs, k, _ = W.shape
        M = torch.from_numpy(draws.random((runs, k, k))).to(W.dtype)
        found.append(M / torch.linalg.matrix_norm(M, keepdim=True))
    return found


def psi(layers: Layers, x: Tensor, draws: Generator) -> Tensor:
    """One draw of the published curvature, [R]."""
    return curve(layers, x, unit_generators(layers, draws)).curvature()


def exponential(layers: Layers, x: Tensor, M: Tensor) -> Layers:
    """e^M on the last hidden layer: V -> s^-1(e^M s(V h)) h^+, U -> U e^-M."""
    z = forward(layers, x)
    wanted = torch.linalg.matrix_exp(M) @ leaky(z[-2])
    # s^-1(v) = min(v, v / 0.1) is LeakyReLU of slope 1 / 0.1.
    made = functional.leaky_relu(wanted, 10.0)
    last = layers[-1] @ torch.linalg.matrix_exp(-M)
    return [*layers[:-2], _fitted(made, x, z, len(layers) - 2), last]
