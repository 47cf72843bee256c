"""The general linear group through the data, on the hidden layers of an ``nn.Sequential``.

    W_in -> W_in + (s^-1(g s(Z)) - Z) A^+,   W_out -> W_out g^-1,   Z = W_in A + b_in

A [n, N] are the inputs of a layer on given samples, A^+ their pseudo-inverse. On these samples
s(Z) -> g s(Z) by least squares: exactly, if A has full column rank (at most as many samples as the
layer has inputs), and otherwise as well as the layer can. On other samples the outputs change. So
these motions are not exact: gradients after them are computed anew, and what they do to the outputs
is measured (``SearchReport.drift``).

Reference: Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.linalg import matrix_exp

from metaopt.base.network import LeakyReLU, pseudo_inverse
from metaopt.landscape.data import Data, pairs_of, tensors_of
from metaopt.landscape.through_data import Layer, layers_of
from metaopt.symmetry.actions import LayerPair, ThroughData
from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.maps import GroupElement
from metaopt.symmetry.motion import Tensors


@dataclass(frozen=True)
class DataMotion:
    """GL(k) through the data on two layers that follow each other.

    Attributes:
        layers: those of the network from the first to the one that reads the hidden space.
        s: the activation between the last two.
        X: the samples, float64 [n, N].
        X_inverse: X^+, float64 [N, n].
    """

    layers: Sequence[Layer]
    s: LeakyReLU
    X: Tensor = field(repr=False)
    X_inverse: Tensor = field(repr=False)

    @property
    def name(self) -> str:
        """The paths of both layers' weights."""
        makes, reads = self.layers[-2:]
        return f"{makes.weight} -> {reads.weight}, through data"

    @property
    def is_compact(self) -> bool:
        """False: it is the general linear group."""
        return False

    @property
    def is_exact(self) -> bool:
        """False: outputs stay on these samples at most."""
        return False

    def zero(self, weights: Tensors) -> Tensor:
        """T = 0, [1, k, k]."""
        k = len(weights[self.layers[-2].weight])
        return torch.zeros(1, k, k, dtype=torch.float64, device="cpu")

    def weights(self, weights: Tensors, T: Tensor) -> dict[str, Tensor]:
        """All of w, both layers moved; differentiable in T and in the weights."""
        *earlier, makes, reads = self.layers
        W_in, W_out = weights[makes.weight], weights[reads.weight]
        A, inverse = self.X.to(W_in), self.X_inverse.to(W_in)
        for layer in earlier:
            Z = weights[layer.weight] @ A
            A = layer.s(Z if layer.bias is None else Z + weights[layer.bias][:, None])
        if earlier:
            inverse = torch.linalg.pinv(A)
        T = T.to(W_in)
        pair = LayerPair(
            W_in=W_in[None],
            W_out=W_out[None],
            s=self.s,
            b_in=None if makes.bias is None else weights[makes.bias][None],
            inputs=A[None],
            inputs_pinv=inverse[None],
        )
        moved = ThroughData().act(GroupElement(matrix_exp(T), matrix_exp(-T)), pair)
        return {**weights, makes.weight: moved.W_in[0], reads.weight: moved.W_out[0]}

    def gradients(self, moved: Tensors, gradients: Tensors, T: Tensor) -> dict[str, Tensor]:
        """Raises ``ValueError``: they are no known function of those at w."""
        raise ValueError("gradients after a move through data are not known, compute them anew")


def through_data(model: nn.Module, data: Data) -> list[DataMotion]:
    """The action through the data on each pair of adjacent layers, for ``teleport``'s symmetries.

    Args:
        model: an ``nn.Sequential`` of ``nn.Linear`` with ``nn.LeakyReLU`` of a slope above 0, or
            nothing, between them; ``nn.Flatten`` may come first.
        data: a pair (inputs, targets), or an iterable of such pairs; all samples are used together,
            and the targets are not read.

    Returns:
        A motion for each hidden layer, in order.

    Raises:
        ValueError: if the model is built otherwise, or has no hidden layer.

    References:
        Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 6.2.
    """
    model = plain(model)
    layers = layers_of(model)
    activations = [_invertible(layer) for layer in layers[:-1]]
    X = torch.cat([next(iter(tensors_of(inputs))).flatten(1) for inputs, _ in pairs_of(data)])
    X = X.detach().double().mT
    inverse = pseudo_inverse(X[None])[0]
    return [DataMotion(layers[: i + 2], s, X, inverse) for i, s in enumerate(activations)]


def _invertible(layer: Layer) -> LeakyReLU:
    """The activation after a layer, which must take all numbers as values."""
    s = layer.s
    if isinstance(s, nn.Identity):
        return LeakyReLU(1.0)
    if isinstance(s, nn.LeakyReLU) and s.negative_slope > 0:
        return LeakyReLU(s.negative_slope)
    raise ValueError(
        f"a search through the data needs nn.LeakyReLU with a slope above 0, or nothing, after "
        f"each layer, since g s(Z) must be a value of s; found {s} after {layer.weight!r}"
    )
