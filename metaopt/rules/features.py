"""Features: functions of one gradient evaluation that learned rules read.

All but ``raw`` and the weights themselves are normalised for each task apart or on a logarithmic
scale, and all are finite, with finite derivatives, at 0.
Coordinate-wise ones keep the order of hidden units out of sight: relabel the units, and the
features are relabelled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metaopt.statistics import FLOOR
from metaopt.tasks import Observation

LOG_RANGE = 10.0
"""p: gradients from e^-p up are seen on a logarithmic scale (Andrychowicz et al. 2016)."""


def raw(g: Tensor) -> Tensor:
    """g itself, as in arXiv 2305.13404."""
    return g


def signed_log(g: Tensor) -> Tensor:
    """sign(g) max(0, 1 + log|g| / p): one number of either sign over many magnitudes."""
    magnitude = 1 + g.abs().clamp(min=math.exp(-LOG_RANGE)).log() / LOG_RANGE
    return torch.sign(g) * magnitude


def log_and_sign(g: Tensor) -> tuple[Tensor, Tensor]:
    """(log|g| / p, sign g) where |g| >= e^-p, else (-1, e^p g).

    References:
        Andrychowicz et al., Learning to learn by gradient descent by gradient descent (2016),
        appendix A.
    """
    log = g.abs().clamp(min=math.exp(-LOG_RANGE)).log() / LOG_RANGE
    return log, (g * math.exp(LOG_RANGE)).clamp(-1, 1)


def over_rms(x: Tensor) -> Tensor:
    """x over its root mean square within each matrix: [.., r, c] -> [.., r, c]; 0 stays 0."""
    mean_square = x.square().mean(dim=(-2, -1), keepdim=True)
    return x / (mean_square + (mean_square == 0)).sqrt()


def log_loss(observation: Observation) -> Tensor:
    """log(L) / p, [B]; 0 where the loss is not known."""
    if observation.loss is None:
        return observation.weights[0].new_zeros(observation.weights[0].shape[0])
    return observation.loss.clamp(min=FLOOR).log() / LOG_RANGE


def flat_gradient(observation: Observation) -> Tensor:
    """All gradients of a task in one row: [B, P]."""
    return torch.cat([G.flatten(1) for G in observation.grads], dim=1)


UPDATE_FEATURES = 5


def update_features(observation: Observation) -> Tensor:
    """Features of every weight: [B, UPDATE_FEATURES, P].

    Logarithm and sign of the gradient, the gradient over its root mean square within the layer, the
    weight, and log(L) / p. Rows run over layers, then weights.
    """
    G = flat_gradient(observation)
    log, sign = log_and_sign(G)
    normalised = torch.cat([over_rms(G).flatten(1) for G in observation.grads], dim=1)
    W = torch.cat([W.flatten(1) for W in observation.weights], dim=1)
    loss = log_loss(observation)[:, None].expand_as(G)
    return torch.stack([log, sign, normalised, W, loss], dim=1)


GENERATOR_FEATURES = 9


def generator_features(observation: Observation) -> Tensor:
    """Features of every entry of every generator: [B, GENERATOR_FEATURES, K].

    For the pair (W1, W2) with gradients G1, G2 and H the activations between them, k by k products:
    H H^T over its mean diagonal; G2^T G2, G1 G1^T, W2^T G2 and its transpose, W2^T W2, W1 W1^T,
    each over its root mean square; the identity; log(L) / p. K = sum of k_l^2 over the pairs.
    """
    W, G = observation.weights, observation.grads
    loss = log_loss(observation)[:, None, None]
    pairs = []
    for layer in range(len(W) - 1):
        W1, W2, G1, G2 = W[layer], W[layer + 1], G[layer], G[layer + 1]
        H = observation.inputs[layer + 1]
        HHt = torch.bmm(H, H.mT)
        diagonal = torch.diagonal(HHt, dim1=-2, dim2=-1).mean(-1)[:, None, None]
        factors = ((G2.mT, G2), (G1, G1.mT), (W2.mT, G2), (W2.mT, W2), (W1, W1.mT))
        normalised = over_rms(torch.stack([torch.bmm(a, b) for a, b in factors], dim=1)).unbind(1)
        identity = torch.eye(HHt.shape[-1], dtype=HHt.dtype, device=HHt.device)
        columns = (
            HHt / diagonal.clamp(min=torch.finfo(HHt.dtype).tiny),
            *normalised[:3],
            normalised[2].mT,
            *normalised[3:],
            identity.expand_as(HHt),
            loss.expand_as(HHt),
        )
        pairs.append(torch.stack(columns, dim=1).flatten(2))
    return pairs[0] if len(pairs) == 1 else torch.cat(pairs, dim=2)


def split_weights(rows: Tensor, observation: Observation) -> tuple[Tensor, ...]:
    """[B, P] -> one [B, out, in] for each layer: the inverse of flattening."""
    shapes = [W.shape for W in observation.weights]
    parts = rows.split([shape[1] * shape[2] for shape in shapes], dim=1)
    return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))


def generator_sizes(observation: Observation) -> list[int]:
    """k_l of each adjacent pair of layers."""
    return [W.shape[1] for W in observation.weights[:-1]]


def split_generators(rows: Tensor, observation: Observation) -> tuple[Tensor, ...]:
    """[B, K] -> one [B, k_l, k_l] for each adjacent pair of layers."""
    sizes = generator_sizes(observation)
    parts = rows.split([k * k for k in sizes], dim=1)
    return tuple(part.reshape(-1, k, k) for part, k in zip(parts, sizes, strict=True))
