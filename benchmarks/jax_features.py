"""Features and directions of one task in the JAX yardstick, for ``vmap``.

As ``metaopt.rules.learned.features`` and ``directions`` have them, for two layers; at points where
nothing is zero.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

from benchmarks.jax_task import Tree
from metaopt.base.loss_statistics import FLOOR
from metaopt.rules.learned.directions import FREE_STEP, LARGEST_LOG_STEP, LARGEST_WHITENING
from metaopt.rules.learned.features import LOG_RANGE


class Seen:
    """What features and directions both need.

    Args:
        w: (W1, W2).
        observation: L, (G1, G2) and (X, H).
    """

    def __init__(self, w: Tree, observation: Tree) -> None:
        L, self.G, A = observation
        self.w = w
        self.grams = [a @ a.T for a in A]
        residual = 2 * jnp.maximum(L, FLOOR)
        everything = residual + jnp.square(w[1] @ A[1]).sum()
        self.log_residual = (jnp.log(residual) - jnp.log(everything)) / LOG_RANGE
        self.share = jnp.exp(self.log_residual * (LOG_RANGE / 2))
        curvatures = (
            largest_row_sum(self.grams[0]) * largest_row_sum(w[1].T @ w[1]),
            largest_row_sum(self.grams[1]),
        )
        self.N = [g / (c + FLOOR) for g, c in zip(self.G, curvatures, strict=True)]


def rms(x: Array) -> Array:
    """Root mean square."""
    return jnp.sqrt(jnp.square(x).mean())


def over_rms(x: Array) -> Array:
    """x over its root mean square."""
    size = rms(x)
    return x / jnp.where(size == 0, 1.0, size)


def log_magnitude(g: Array) -> Array:
    """max(-1, log|g| / p)."""
    return jnp.log(jnp.maximum(jnp.abs(g), math.exp(-LOG_RANGE))) / LOG_RANGE


def largest_row_sum(S: Array) -> Array:
    """max_i sum_j |S_ij|."""
    return jnp.abs(S).sum(1).max()


def spread(S: Array) -> Array:
    """log(max_i sum_j |S_ij| / (tr S / k)) / 3."""
    return jnp.log((largest_row_sum(S) + FLOOR) / (jnp.trace(S) / len(S) + FLOOR)) / 3


def log_square(x: Array) -> Array:
    """log ||x||_F^2."""
    return jnp.log(jnp.maximum(jnp.square(x).sum(), FLOOR))


def layer_features(seen: Seen) -> Array:
    """[4, 2]."""
    columns = [
        jnp.stack(
            [
                seen.log_residual,
                jnp.clip((log_square(n) - log_square(W)) / (2 * LOG_RANGE), -3, 3),
                spread(gram),
                jnp.full_like(seen.log_residual, layer),
            ]
        )
        for layer, (W, n, gram) in enumerate(zip(seen.w, seen.N, seen.grams, strict=True))
    ]
    return jnp.stack(columns, axis=1)


def update_features(w: Tree, observation: Tree) -> Array:
    """[8, P]."""
    seen = Seen(w, observation)
    layers = []
    for W, g, of_layer in zip(w, seen.G, layer_features(seen).T, strict=True):
        normalised = over_rms(g).ravel()
        sign = jnp.clip(normalised * math.exp(LOG_RANGE), -1, 1)
        own = jnp.stack([normalised, log_magnitude(normalised), sign, over_rms(W).ravel()])
        layers.append(jnp.concatenate([own, jnp.tile(of_layer[:, None], W.size)]))
    return jnp.concatenate(layers, axis=1)


def generator_features(w: Tree, observation: Tree) -> Array:
    """[10, k^2]."""
    seen = Seen(w, observation)
    (W1, W2), (G1, G2), HHt = w, seen.G, seen.grams[1]
    W2tG2 = over_rms(W2.T @ G2)
    columns = (
        HHt / (jnp.trace(HHt) / len(HHt) + FLOOR),
        over_rms(G2.T @ G2),
        over_rms(G1 @ G1.T),
        W2tG2,
        W2tG2.T,
        over_rms(W2.T @ W2),
        over_rms(W1 @ W1.T),
        jnp.eye(len(HHt), dtype=HHt.dtype),
        jnp.full_like(HHt, seen.log_residual),
        jnp.full_like(HHt, spread(HHt)),
    )
    return jnp.stack(columns).reshape(len(columns), -1)


def flat_features(w: Tree, observation: Tree, gradient: str) -> Array:
    """The gradient, raw or on a logarithmic scale, and with ``stateful`` the features of layers."""
    g = jnp.concatenate([G.ravel() for G in observation[1]])
    if gradient == "raw":
        return g
    g = jnp.sign(g) * (1 + log_magnitude(g))
    if gradient == "signed_log":
        return g
    return jnp.concatenate([g, layer_features(Seen(w, observation)).ravel()])


def update(w: Tree, observation: Tree, of_layers: Array, of_entries: Array, free: float) -> Array:
    """What outputs are read as, [P], of [1, 2] for layers and [2, P] for entries."""
    seen = Seen(w, observation)
    c = -0.5 * jnp.exp(jnp.minimum(of_layers[0], LARGEST_LOG_STEP))
    parts = jnp.split(of_entries, [w[0].size], axis=1)
    layers = [
        c[i] * n.ravel() + free * (of[0] * rms(n) + of[1] * FREE_STEP * seen.share * rms(W))
        for i, (W, n, of) in enumerate(zip(w, seen.N, parts, strict=True))
    ]
    return jnp.concatenate(layers)


def generator(
    w: Tree, observation: Tree, of_layers: Array, of_entries: Array, free: float
) -> Array:
    """What outputs are read as, [k^2], of [2, 1] for the pair and [1, k^2] for entries."""
    seen = Seen(w, observation)
    HHt = over_rms(seen.grams[1])
    k = len(HHt)
    c = jnp.array(LARGEST_WHITENING, HHt.dtype) * jnp.tanh(of_layers[:, 0])
    T = c[0] * HHt + c[1] * over_rms(HHt @ HHt) + free * seen.share * of_entries.reshape(k, k)
    T = T / math.sqrt(k)
    growth = (T * HHt).sum() / (jnp.trace(HHt) + FLOOR)
    return (T - growth * jnp.eye(k, dtype=T.dtype)).ravel()


OUTPUTS = {"update": (1, 2), "teleport": (2, 1)}
"""Of each rule on directions, how many for a layer and how many for an entry."""
