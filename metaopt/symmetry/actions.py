"""Group actions on a pair of adjacent layers: (W_in, b_in, W_out) -> g . (W_in, b_in, W_out).

| action       | W_in                          | W_out      | exact when               |
| ThroughData  | W_in + (s^-1(g s(Z)) - Z) A^+ | W_out g^-1 | A has full column rank   |
| Linear       | g W_in                        | W_out g^-1 | s is the identity        |
| Scaling      | D W_in, D = diag > 0          | W_out D^-1 | s positively homogeneous |
| Orthogonal   | Q W_in                        | W_out Q^T  | s is the identity        |
| Permutation  | P W_in                        | W_out P^T  | always                   |

Z = W_in A + b_in are the pre-activations, A [B, n, N] the input of the layer. "Exact" means that
the network's output, and so the loss, is the same for every element, up to rounding.
The first is the action of GL(k) of arXiv 2305.13404, section 6.2, there written as
s^-1(g s(W_in A)) A^+. That form erases what W_in holds outside the column space of A; the form here
does not, so that the identity acts as one, and it equals the paper's where A has full row rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaopt.base.errors import MisfitError
from metaopt.base.network import LeakyReLU
from metaopt.symmetry.maps import GroupElement


class InexactActionError(MisfitError):
    """The action cannot keep the loss on the given data or network."""


@dataclass(frozen=True)
class LayerPair:
    """Two adjacent layers, and the data between which the action through the data needs.

    Attributes:
        W_in: [B, k, n].
        W_out: [B, m, k].
        s: the activation between the two.
        b_in: [B, k], or None without bias.
        inputs: A [B, n, N], the input of the first layer.
        inputs_pinv: A^+ [B, N, n].
    """

    W_in: Tensor
    W_out: Tensor
    s: LeakyReLU
    b_in: Tensor | None = None
    inputs: Tensor | None = None
    inputs_pinv: Tensor | None = None


class Action(ABC):
    """A linear group acting on layer pairs; elements are given by k by k matrices."""

    needs_data: bool = False
    """Whether ``act`` reads ``inputs`` and ``inputs_pinv`` of the pair."""

    def algebra(self, T: Tensor) -> Tensor:
        """The part of a matrix [B, k, k] that lies in the group's Lie algebra."""
        return T

    @abstractmethod
    def act(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """g . pair, differentiable in the element and in the weights."""

    @abstractmethod
    def require_exact(self, s: LeakyReLU, samples: int, inputs: int) -> None:
        """Raise ``InexactActionError`` where the action cannot keep the loss.

        Args:
            s: the activation between the two layers.
            samples: N.
            inputs: n of the first layer.
        """

    def _left_right(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """W_in -> g W_in, b_in -> g b_in, W_out -> W_out g^-1."""
        b_in = None if pair.b_in is None else torch.bmm(element.g, pair.b_in[..., None])[..., 0]
        return replace(
            pair,
            W_in=torch.bmm(element.g, pair.W_in),
            b_in=b_in,
            W_out=torch.bmm(pair.W_out, element.g_inv),
        )


class ThroughData(Action):
    """GL(k) through the data: s(Z) -> g s(Z) on the samples at hand.

    W_in' = W_in + D with D A = s^-1(g s(Z)) - Z =: C. D = C A^+ is refined once by
    D += (C - D A) A^+, which brings the residual down to the rounding of D A itself where A is
    ill-conditioned. The bias stays as it is.
    """

    needs_data = True

    def act(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """g . pair; raises ``ValueError`` where the pair carries no data."""
        if pair.inputs is None or pair.inputs_pinv is None:
            raise ValueError("the action through the data needs the inputs and their inverse")
        A, A_pinv = pair.inputs, pair.inputs_pinv
        Z = torch.bmm(pair.W_in, A)
        if pair.b_in is not None:
            Z = Z + pair.b_in[..., None]
        C = pair.s.inverse(torch.bmm(element.g, pair.s(Z))) - Z
        D = torch.bmm(C, A_pinv)
        residual = torch.baddbmm(C, D, A, alpha=-1)
        D = torch.baddbmm(D, residual, A_pinv)
        return replace(pair, W_in=pair.W_in + D, W_out=torch.bmm(pair.W_out, element.g_inv))

    def require_exact(self, s: LeakyReLU, samples: int, inputs: int) -> None:
        """With more samples than inputs, A cannot have full column rank (a linear s needs none)."""
        if samples > inputs and not s.is_identity:
            raise InexactActionError(
                f"the action through the data is exact for at most as many samples as the layer "
                f"has inputs, found {samples} samples and {inputs} inputs"
            )


class Linear(Action):
    """GL(k) on linear layers: W_in -> g W_in, W_out -> W_out g^-1."""

    def act(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """g . pair."""
        return self._left_right(element, pair)

    def require_exact(self, s: LeakyReLU, samples: int, inputs: int) -> None:
        """Exact if s is the identity."""
        if not s.is_identity:
            raise InexactActionError(
                f"the {type(self).__name__.lower()} action is exact for the identity between the "
                f"layers (slope 1), found slope {s.slope}"
            )


class Orthogonal(Linear):
    """O(k): skew generators, Q = g, Q^-1 = Q^T (with the exponential or the Cayley map)."""

    def algebra(self, T: Tensor) -> Tensor:
        """The skew part (T - T^T) / 2."""
        return (T - T.mT) / 2


class Scaling(Action):
    """Positive diagonal matrices: exact on any data for positively homogeneous s."""

    def algebra(self, T: Tensor) -> Tensor:
        """The diagonal part of T."""
        return torch.diag_embed(torch.diagonal(T, dim1=-2, dim2=-1))

    def act(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """g . pair."""
        return self._left_right(element, pair)

    def require_exact(self, s: LeakyReLU, samples: int, inputs: int) -> None:
        """Always exact: LeakyReLU is positively homogeneous."""


class Permutation(Action):
    """Relabelling of hidden units; its elements come from ``elements.permutation``."""

    def act(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """g . pair."""
        return self._left_right(element, pair)

    def require_exact(self, s: LeakyReLU, samples: int, inputs: int) -> None:
        """Always exact: s acts on each unit alike."""
