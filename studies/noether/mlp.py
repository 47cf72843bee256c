"""Batched ReLU classifiers: gradients, noise of each weight, and where on the orbit they stand.

Layer l is one matrix [B, out, in + 1], its bias the last column. Unit u of a hidden layer may be
scaled by e^t, the row that makes it by e^t and the column that reads it by e^-t; gradients move
the other way. Noise leaves t where both sides' variances have one sum, for all units at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from metaopt.base.streams import Stream, item_generator

Layers = list[Tensor]

SWEEPS = 2000
TINY = 1e-30


def kaiming(sizes: Sequence[int], runs: int, index: int) -> Layers:
    """Normal with variance 2 / in, biases 0; float32."""
    draws = item_generator(Stream.INITIALISATION, 0, index)
    layers = []
    for n, m in pairwise(sizes):
        W = torch.from_numpy(draws.standard_normal((runs, m, n))) * (2 / n) ** 0.5
        layers.append(torch.cat([W, torch.zeros(runs, m, 1)], -1).float())
    return layers


def forward(layers: Layers, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What each layer is given [B, S, in + 1], and logits: x [B, S, in]."""
    given = []
    for W in layers:
        x = functional.pad(x, (0, 1), value=1.0)
        given.append(x)
        z = x @ W.mT
        x = z.relu()
    return given, z


def backward(layers: Layers, given: list[Tensor], slope: Tensor) -> list[Tensor]:
    """Slopes of each sample's loss in what each layer puts out [B, S, out], from the last one's."""
    slopes = [slope]
    for W, h in zip(reversed(layers[1:]), reversed(given[1:]), strict=True):
        slope = (slope @ W[..., :-1]) * (h[..., :-1] > 0)
        slopes.append(slope)
    return slopes[::-1]


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each run: [B, S, classes], y [B, S] -> [B]."""
    each = functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return each.view(y.shape).mean(1)


def gradients(layers: Layers, x: Tensor, y: Tensor) -> tuple[Layers, Tensor]:
    """Of each run's mean loss, with the loss [B]."""
    given, z = forward(layers, x)
    slope = z.softmax(-1) - functional.one_hot(y, z.shape[-1]).to(z.dtype)
    slopes = backward(layers, given, slope / x.shape[1])
    return [d.mT @ h for d, h in zip(slopes, given, strict=True)], loss(z, y)


def noise(layers: Layers, x: Tensor, y: Tensor) -> Layers:
    """The variance over samples of each weight's gradient, float64."""
    given, z = forward([W.double() for W in layers], x.double())
    slope = z.softmax(-1) - functional.one_hot(y, z.shape[-1]).to(z.dtype)
    slopes = backward([W.double() for W in layers], given, slope)
    count = x.shape[1]
    return [
        ((d.square().mT @ h.square()) / count - ((d.mT @ h) / count).square()).clamp_min(0)
        for d, h in zip(slopes, given, strict=True)
    ]


def curvature(layers: Layers, x: Tensor) -> Tensor:
    """Trace of the Gauss-Newton matrix, E sum_c p_c |gradient for label c|^2: [B]."""
    given, z = forward(layers, x)
    p = z.softmax(-1)
    total = torch.zeros(len(z))
    for c in range(z.shape[-1]):
        label = functional.one_hot(torch.full(z.shape[:2], c), z.shape[-1]).to(z.dtype)
        slopes = backward(layers, given, p - label)
        square = sum(
            (d.square().sum(-1) * h.square().sum(-1) for d, h in zip(slopes, given, strict=True)),
            torch.zeros(()),
        )
        total = total + (p[..., c] * square).mean(1)
    return total


def _moved(entries: Layers, scales: list[Tensor]) -> Layers:
    """Squares of what scales e^t, [B, k] for each hidden layer, make of weights' gradients."""
    moved = [V.clone() for V in entries]
    for i, t in enumerate(scales):
        moved[i] *= (-2 * t).exp()[..., None]
        moved[i + 1][..., :-1] *= (2 * t).exp()[:, None]
    return moved


def sums(entries: Layers) -> list[tuple[Tensor, Tensor]]:
    """Of each hidden layer's units, what comes in and what goes out: [B, k] each."""
    return [(one.sum(-1), other[..., :-1].sum(1)) for one, other in pairwise(entries)]


def equilibrium(entries: Layers) -> list[Tensor]:
    """t of all hidden units at once: matrix balancing, unit by unit in closed form.

    Args:
        entries: what is to be balanced, variances of gradients.

    Returns:
        [B, k] for each hidden layer; NaN for units without noise on one side.
    """
    scales = [torch.zeros_like(incoming) for incoming, _ in sums(entries)]
    alive = [torch.minimum(a, b) > TINY for a, b in sums(entries)]
    for _ in range(SWEEPS):
        largest = 0.0
        for i in range(len(scales)):
            a, b = sums(_moved(entries, scales))[i]
            step = torch.where(alive[i], (a / b).log() / 4, 0.0)
            scales[i] = scales[i] + step
            largest = max(largest, float(step.abs().max()))
        if largest < 1e-9:
            break
    return [torch.where(mask, t, torch.nan) for mask, t in zip(alive, scales, strict=True)]


def move(layers: Layers, scales: list[Tensor]) -> Layers:
    """Units scaled by e^t, those of NaN left alone."""
    moved = [W.clone() for W in layers]
    for i, t in enumerate(scales):
        factor = t.nan_to_num(0.0).exp().to(moved[i].dtype)
        moved[i] *= factor[..., None]
        moved[i + 1][..., :-1] /= factor[:, None]
    return moved


@dataclass(frozen=True)
class Standing:
    """Where runs stand on their orbits, NaN for units without noise on one side."""

    t: Tensor  # of each hidden unit to the noise equilibrium, [B, units]
    norm: Tensor  # the same to the point of least norm
    rate: Tensor  # the share of its t that a unit loses in a step of SGD

    def told(self) -> dict[str, Tensor]:
        """Root mean squares over units, the median of 1 / rate, the share of NaN: [B] each."""
        return {
            "noise": root_mean_square(self.t),
            "norm": root_mean_square(self.norm),
            "steps_to": (1 / self.rate).nanmedian(1).values,
            "dead": self.t.isnan().double().mean(1),
        }


def standing(layers: Layers, x: Tensor, y: Tensor, lr: float, batch: float) -> Standing:
    """Distances in t, and how fast SGD of this learning rate and batch size closes them."""
    entries = noise(layers, x, y)
    scales = equilibrium(entries)
    t = torch.cat(scales, 1)
    # Weights move as gradients do with -t.
    norms = torch.cat(equilibrium([W.double().square() for W in layers]), 1)
    there = [W.square() for W in move([W.double() for W in layers], scales)]
    noises = sums(_moved(entries, [t.nan_to_num(0.0) for t in scales]))
    pairs = zip(sums(there), noises, strict=True)
    paces = torch.cat([(s + r) / (a + b) for (a, b), (s, r) in pairs], 1)
    return Standing(t, norms, torch.where(t.isnan(), torch.nan, paces * (lr**2 / batch)))


def root_mean_square(t: Tensor) -> Tensor:
    """Over units, NaN left out: [B, units] -> [B]."""
    return t.square().nanmean(1).sqrt()
