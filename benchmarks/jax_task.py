"""What belongs to one task of the JAX yardstick: gradient and teleport; for ``vmap``.

Two things that the package does are left out, both to JAX's advantage: the guard with its
measurement of drift, and the refinement of W_in in the action through the data.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from metaopt.rules.config import TeleporterConfig

Tree = Any
"""A pytree of arrays."""


def leaky(z: Array, slope: float) -> Array:
    """LeakyReLU."""
    return jnp.where(z > 0, z, slope * z)


def observe(w: Tree, X: Array, Y: Array, slope: float) -> Tree:
    """L, (G1, G2) and (X, H) of one task, as constants."""

    def loss(w: Tree) -> tuple[Array, Array]:
        H = leaky(w[0] @ X, slope)
        return 0.5 * jnp.square(Y - w[1] @ H).sum(), H

    (L, H), G = jax.value_and_grad(loss, has_aux=True)(lax.stop_gradient(w))
    return lax.stop_gradient((L, G, (X, H)))


def element(T: Array, config: TeleporterConfig) -> tuple[Array, Array]:
    """(g, g^-1) of one generator: I +- T, or the package's scaled series."""
    eye = jnp.eye(len(T), dtype=T.dtype)
    squares = jnp.square(T).sum()
    if config.limit == "fixed":
        T = T * config.max_norm / jnp.sqrt(squares)
    else:
        T = T * lax.rsqrt(1 + squares / config.max_norm**2)
    if config.element == "first_order":
        return eye + T, eye - T
    order, radius = (10, 0.5) if T.dtype == jnp.float32 else (14, 0.25)
    squarings = max(0, math.ceil(math.log2(config.max_norm / radius)))
    A = T * 2.0**-squarings
    A2 = A @ A
    even, odd = eye / math.factorial(order - 2), eye / math.factorial(order - 1)
    for power in range(order - 4, -1, -2):
        even = eye / math.factorial(power) + A2 @ even
        odd = eye / math.factorial(power + 1) + A2 @ odd
    odd = A @ odd
    g, g_inv = even + odd, even - odd
    for _ in range(squarings):
        g, g_inv = g @ g, g_inv @ g_inv
    return g, g_inv


def teleport(
    w: Tree, T: Array, X: Array, X_pinv: Array, slope: float, config: TeleporterConfig
) -> Tree:
    """g.w of one task through its data."""
    g, g_inv = element(T, config)
    Z = w[0] @ X
    moved = leaky(g @ leaky(Z, slope), 1 / slope) - Z
    return w[0] + moved @ X_pinv, w[1] @ g_inv
