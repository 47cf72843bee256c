"""The network that is optimised: a chain of bias-free dense layers with LeakyReLU between them.

    Z_l = W_l A_{l-1},   A_l = s(Z_l),   A_0 = X,   f(W) = Z_L

Tasks (loss, gradient), teleports (actions, drift) and the drop-in optimizer all use this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Weights = tuple[Tensor, ...]
"""One matrix [B, out, in] for each layer."""


def as_matrices(parameters: Tensor) -> Tensor:
    """Parameters of any shape as matrices: [B, out, ..] -> [B, out, rest], and [B] -> [B, 1, 1]."""
    out = parameters.shape[1] if parameters.dim() > 1 else 1
    return parameters.reshape(parameters.shape[0], out, -1)


@dataclass(frozen=True)
class LeakyReLU:
    """s(z) = z if z > 0, else slope z; a bijection because 0 < slope <= 1.

    Args:
        slope: the negative slope; 1 makes s the identity.
    """

    slope: float

    def __call__(self, z: Tensor) -> Tensor:
        """s(z), of the shape of z."""
        return functional.leaky_relu(z, self.slope)

    def inverse(self, a: Tensor) -> Tensor:
        """s^-1(a): LeakyReLU of slope 1 / slope."""
        return functional.leaky_relu(a, 1.0 / self.slope)

    def derivative(self, z: Tensor) -> Tensor:
        """s'(z), with s'(0) = slope as in torch."""
        # Scalars of the dtype of z: two Python floats would make a float32 tensor.
        return torch.where(z > 0, z.new_ones(()), z.new_full((), self.slope))

    @property
    def is_identity(self) -> bool:
        """Whether s is the identity, so that the network is linear."""
        return self.slope == 1.0


@dataclass(frozen=True)
class Forward:
    """What one forward pass computed.

    Attributes:
        inputs: the inputs A_0 .. A_{L-1} of the layers, each [B, n_l, N].
        preactivations: Z_1 .. Z_{L-1}, each [B, k_l, N].
        outputs: f(W), [B, m, N].
    """

    inputs: tuple[Tensor, ...]
    preactivations: tuple[Tensor, ...]
    outputs: Tensor

    def where(self, condition: Tensor, otherwise: Forward) -> Forward:
        """This pass for the tasks for which ``condition`` [B] is true, the other for the rest."""

        def chosen(own: Tensor, other: Tensor) -> Tensor:
            return torch.where(condition[:, None, None], own, other)

        return Forward(
            (
                self.inputs[0],
                *map(chosen, self.inputs[1:], otherwise.inputs[1:]),
            ),
            tuple(map(chosen, self.preactivations, otherwise.preactivations)),
            chosen(self.outputs, otherwise.outputs),
        )


def pseudo_inverse(A: Tensor) -> Tensor:
    """A^+ [B, N, n] of A [B, n, N], computed in float64.

    For 20 by 20 uniform data the condition number is 1e2 to 1e5, too large for float32. It is
    computed once a trajectory.
    """
    return torch.linalg.pinv(A.double()).to(A.dtype)


def forward(weights: Sequence[Tensor], X: Tensor, s: LeakyReLU) -> Forward:
    """Z_l = W_l A_{l-1}, A_l = s(Z_l) through all layers.

    Args:
        weights: L matrices [B, out, in].
        X: the inputs, [B, n, N].
        s: the activation between layers.
    """
    inputs, preactivations = [X], []
    for W in weights[:-1]:
        preactivations.append(torch.bmm(W, inputs[-1]))
        inputs.append(s(preactivations[-1]))
    return Forward(tuple(inputs), tuple(preactivations), torch.bmm(weights[-1], inputs[-1]))
