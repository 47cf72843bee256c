"""The general linear group that acts on a plain MLP through its data, to second order.

    V -> V + (s^-1(g s(Z)) - Z) h^+,   U -> U g^-1,   Z = V h + b,   g = exp(t M)

V [k, n] makes the hidden space that U [m, k] reads, s lies between them, and h [n, N] are the
inputs of V's layer, h^+ their pseudo-inverse. With z1 = M s(Z) / s'(Z) and
z2 = (M^2 s(Z) - s''(Z) z1^2) / s'(Z), a layer W between the groups of M and of M_prev has

    W' = z1 h^+ - W M_prev,   W'' = z2 h^+ - 2 z1 h^+ M_prev + W M_prev^2

The groups act from the last layers to the first, so that each reads inputs that no other has
changed. The action leaves the outputs alone on as many samples as V has inputs; on more of them it
is the least-squares fit of one that does.

Reference: Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jvp

from metaopt.landscape.velocities import bend

Activation = Callable[[Tensor], Tensor]

MONOTONE = (
    nn.CELU,
    nn.ELU,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.SELU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Tanh,
)
"""Activations that have an inverse."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of a chain, with what follows it.

    Attributes:
        weight: the path of its weights.
        bias: the path of its bias, or None.
        s: the activation after it.
    """

    weight: str
    bias: str | None
    s: Activation


@dataclass(frozen=True)
class Seen:
    """What a layer sees and makes of the data.

    Attributes:
        inverse: h^+, [N, n].
        Z: V h + b, [k, N].
        H: s(Z), [k, N].
    """

    inverse: Tensor
    Z: Tensor
    H: Tensor


def layers_of(model: nn.Module) -> list[Layer]:
    """The linear layers of a plain MLP, from its inputs on.

    Args:
        model: ``nn.Sequential`` of ``nn.Linear``, each followed by at most one activation that has
            an inverse; ``nn.Flatten`` may come first.

    Raises:
        ValueError: if it is no such model.
    """
    if type(model) is not nn.Sequential:
        raise ValueError(
            f"the action through the data needs a plain nn.Sequential MLP, found "
            f"{type(model).__name__}: leave data out for the symmetries of the model"
        )
    found: list[Layer] = []
    is_free = False  # whether the last layer may take an activation
    for path, module in model.named_children():
        if type(module) is nn.Linear:
            bias = None if module.bias is None else f"{path}.bias"
            found.append(Layer(f"{path}.weight", bias, nn.Identity()))
            is_free = True
        elif found and is_free and isinstance(module, MONOTONE):
            found[-1] = Layer(found[-1].weight, found[-1].bias, module)
            is_free = False
        elif found or not isinstance(module, nn.Flatten):
            names = ", ".join(kind.__name__ for kind in MONOTONE)
            raise ValueError(
                f"the action through the data needs linear layers with one of {names} between "
                f"them, found {type(module).__name__} at {path!r}"
            )
    if len(found) < 2:
        raise ValueError(
            f"the action through the data needs two linear layers or more, found {len(found)}"
        )
    return found


def seen_by(weights: Mapping[str, Tensor], layers: Sequence[Layer], inputs: Tensor) -> list[Seen]:
    """What the layers before the last one see and make of the data.

    Args:
        weights: by path.
        layers: from ``layers_of``.
        inputs: X, a sample a row, [N, ...].
    """
    h, found = inputs.flatten(1).mT, []
    for layer in layers[:-1]:
        Z = weights[layer.weight] @ h
        if layer.bias is not None:
            Z = Z + weights[layer.bias][:, None]
        found.append(Seen(torch.linalg.pinv(h), Z, layer.s(Z)))
        h = found[-1].H
    return found


def kappa_through_data(
    weights: Mapping[str, Tensor],
    layers: Sequence[Layer],
    seen: Sequence[Seen],
    generators: Sequence[Tensor],
) -> Tensor:
    """kappa at t = 0 of all groups acting through the data at once, a scalar.

    It is differentiable in everything, and ``torch.func.vmap`` runs it over generators.

    Args:
        weights: w, by path.
        layers: from ``layers_of``.
        seen: from ``seen_by``, at the same weights.
        generators: M of each layer but the last one, [k, k]; one of zeros leaves its layer alone.
    """
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    for i, layer in enumerate(layers):
        W = weights[layer.weight]
        v, a = torch.zeros_like(W), torch.zeros_like(W)
        if i < len(seen):
            z1, z2 = _pulled_back(layer.s, seen[i], generators[i])
            v, a = z1 @ seen[i].inverse, z2 @ seen[i].inverse
        if i > 0:
            before = generators[i - 1]
            v, a = v - W @ before, a + (W @ before - 2 * v) @ before
        first[layer.weight], second[layer.weight] = v, a
    return bend(first, second)


def _pulled_back(s: Activation, seen: Seen, M: Tensor) -> tuple[Tensor, Tensor]:
    """z1 and z2, the derivatives of s^-1(exp(t M) s(Z)) at t = 0."""
    ones = torch.ones_like(seen.Z)

    def slope(z: Tensor) -> Tensor:
        return jvp(s, (z,), (ones,))[1]

    found = jvp(slope, (seen.Z,), (ones,))
    rises, bends = found[0], found[1]
    moved = M @ seen.H
    z1 = moved / rises
    return z1, (M @ moved - bends * z1.square()) / rises
