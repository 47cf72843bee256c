"""Noise equilibria and flattest points as formulas, of linear networks with independent noise.

y = V x + n, n independent of x, loss |y - f(x)|^2; S_x = E[x x^T], S_e = E[n n^T] and
S_e^{1/2} V S_x^{1/2} = L S R^T, of rank r.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.symmetry.geometric_mean import power


@dataclass(frozen=True)
class Linear:
    """A linear problem; matrices may have leading axes."""

    V: Tensor  # [.., m, n]
    Sx: Tensor  # [.., n, n]
    Se: Tensor  # [.., m, m]

    def factors(self, rank: int, Se: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L [.., m, rank], S [.., rank], R [.., n, rank] of Se^{1/2} V Sx^{1/2}."""
        middle = power(Se, 0.5) @ self.V @ power(self.Sx, 0.5)
        L, S, R = torch.linalg.svd(middle, full_matrices=False)
        return L[..., :rank], S[..., :rank], R.mT[..., :rank]

    def equilibrium(self, rank: int) -> tuple[Tensor, Tensor]:
        """U [.., m, rank], W [.., rank, n] with U^T Gu U = W Gw W^T.

        U = (Tr Se / Tr Sx)^{1/4} Se^{-1/2} L S^{1/2},
        W = (Tr Sx / Tr Se)^{1/4} S^{1/2} R^T Sx^{-1/2}, up to an orthogonal Q between them.
        """
        W, U = self.deep_equilibrium(rank, 2)
        return U, W

    def deep_equilibrium(self, rank: int, depth: int) -> list[Tensor]:
        """W_1 .. W_D, of which the inner ones are rho times the identity [.., rank, rank].

        W_1 = c_1 S^{1/2} R^T Sx^{-1/2}, W_D = Se^{-1/2} L S^{1/2} / c_{D-1},
        rho = ((Tr S)^2 / (Tr Se Tr Sx))^{1/2D},
        log c_i^2 = (1 - i/D) log(Tr Sx / Tr S) + (i/D) log(Tr S / Tr Se).
        """
        L, S, R = self.factors(rank, self.Se)
        te, tx, ts = _trace(self.Se), _trace(self.Sx), S.sum(-1)
        first, last = (tx / ts).log(), (ts / te).log()
        root = S.sqrt()

        def scale(i: int) -> Tensor:
            return ((1 - i / depth) * first + (i / depth) * last).mul(0.5).exp()[..., None, None]

        rho = (ts**2 / (te * tx)) ** (0.5 / depth)
        inner = rho[..., None, None] * torch.eye(rank, dtype=S.dtype)
        begin = scale(1) * root[..., None] * (R.mT @ power(self.Sx, -0.5))
        end = power(self.Se, -0.5) @ L * root[..., None, :] / scale(depth - 1)
        return [begin, *[inner] * (depth - 2), end]

    def flattest(self, rank: int) -> tuple[Tensor, Tensor]:
        """U, W of the least trace of the Hessian: the equilibrium of isotropic noise."""
        eye = torch.eye(self.Se.shape[-1], dtype=self.Se.dtype).expand_as(self.Se)
        return Linear(self.V, self.Sx, eye).equilibrium(rank)

    def sharpness(self, U: Tensor, W: Tensor) -> Tensor:
        """Tr H = 2 (Tr Sx |U|^2 + m Tr(W Sx W^T)): [..]."""
        inner = _trace(W @ self.Sx @ W.mT)
        return 2 * (_trace(self.Sx) * U.square().sum((-2, -1)) + self.Se.shape[-1] * inner)


def _trace(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)
