"""Group actions on a pair of adjacent layers: (W_in, b_in, W_out) -> g . (W_in, b_in, W_out).

| action       | W_in                          | W_out      | exact when               |
| ThroughData  | W_in + (s^-1(g s(Z)) - Z) A^+ | W_out g^-1 | A has full column rank   |
| Linear       | g W_in                        | W_out g^-1 | s is the identity        |
| Scaling      | D W_in, D = diag > 0          | W_out D^-1 | s positively homogeneous |
| Orthogonal   | Q W_in                        | W_out Q^T  | s is the identity        |
| Permutation  | P W_in                        | W_out P^T  | always                   |

Z = W_in A + b_in are the pre-activations, A [B, n, N] the input of the layer. "Exact" means that
the network's output, and so the loss, is the same for every element, up to rounding.
``ThroughData`` is the action of GL(k) of arXiv 2305.13404, section 6.2, written there as
s^-1(g s(W_in A)) A^+. That form erases the part of W_in outside the column space of A. The form
here keeps it, so that the identity changes nothing; both are equal if A has full row rank.
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
    """Two adjacent layers, with the data that the action through the data needs.

    Attributes:
        W_in: the weights of the first layer, [B, k, n].
        W_out: the weights of the second layer, [B, m, k].
        s: the activation between the two.
        b_in: the bias of the first layer, [B, k], or None if it has none.
        inputs: A, the input of the first layer, [B, n, N]; None if not needed.
        inputs_pinv: the pseudo-inverse A^+, [B, N, n]; None if not needed.
    """

    W_in: Tensor
    W_out: Tensor
    s: LeakyReLU
    b_in: Tensor | None = None
    inputs: Tensor | None = None
    inputs_pinv: Tensor | None = None


class Action(ABC):
    """A linear group that acts on pairs of layers; its elements are given by k by k matrices."""

    needs_data: bool = False
    """Whether ``act`` reads ``inputs`` and ``inputs_pinv`` of the pair."""

    def algebra(self, T: Tensor) -> Tensor:
        """The projection of matrices T [B, k, k] on the group's Lie algebra."""
        return T

    @abstractmethod
    def act(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """g . pair, differentiable in the element and in the weights.

        Args:
            element: g and g^-1, both [B, k, k].
            pair: the two layers, with the data if the action needs them.
        """

    @abstractmethod
    def require_exact(self, s: LeakyReLU, samples: int, inputs: int) -> None:
        """Raise ``InexactActionError`` if the action cannot keep the loss.

        Args:
            s: the activation between the two layers.
            samples: N, the number of samples.
            inputs: n, the number of inputs of the first layer.
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
    """GL(k) through the data: s(Z) -> g s(Z) on the given samples.

        W_in -> W_in + D,   D A = C := s^-1(g s(Z)) - Z,   W_out -> W_out g^-1

    D = C A^+ is refined once by D += (C - D A) A^+, which makes the residual as small as the
    rounding of D A even if A is ill-conditioned. The bias does not change.
    """

    needs_data = True

    def act(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """g . pair; raises ``ValueError`` if the pair has no data."""
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
        """Raise if N > n, where A cannot have full column rank, unless s is the identity."""
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
        """Raise unless s is the identity."""
        if not s.is_identity:
            raise InexactActionError(
                f"the {type(self).__name__.lower()} action is exact for the identity between the "
                f"layers (slope 1), found slope {s.slope}"
            )


class Orthogonal(Linear):
    """O(k): W_in -> Q W_in, W_out -> W_out Q^T, with skew generators.

    Q = g is orthogonal with the exponential and with the Cayley map.
    """

    def algebra(self, T: Tensor) -> Tensor:
        """The skew part (T - T^T) / 2."""
        return (T - T.mT) / 2


class Scaling(Action):
    """Positive diagonal D: W_in -> D W_in, W_out -> W_out D^-1; for positively homogeneous s."""

    def algebra(self, T: Tensor) -> Tensor:
        """The diagonal part of T."""
        return torch.diag_embed(torch.diagonal(T, dim1=-2, dim2=-1))

    def act(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """g . pair."""
        return self._left_right(element, pair)

    def require_exact(self, s: LeakyReLU, samples: int, inputs: int) -> None:
        """Never raises: LeakyReLU is positively homogeneous."""


class Permutation(Action):
    """Relabelling of hidden units: W_in -> P W_in, W_out -> W_out P^T (``maps.permutation``)."""

    def act(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """g . pair."""
        return self._left_right(element, pair)

    def require_exact(self, s: LeakyReLU, samples: int, inputs: int) -> None:
        """Never raises: s acts on each hidden unit alike."""
