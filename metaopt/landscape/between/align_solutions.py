"""The element of one group that brings one symmetry's weights closest, all others held.

    f(g) = |A - g B|^2 + |C - g^-T D|^2

A and B are what makes the units, of a and of b, C and D what reads them, units by rows. Only sums
of products matter: A B^T, B B^T, C D^T, D D^T.

| group | g |
| signs | sign(diag(A B^T + C D^T)) |
| orthogonal | U V^T of A B^T + C D^T = U S V^T (Procrustes) |
| scaling | a root of b s^4 - p s^3 + q s - d = 0, p and q the products, b and d the squares |
| rotation by pairs | the angle of the same products; the scale by Newton's method |
| general linear | Gauss-Newton: T B'B'^T + D'D'^T T = minus the gradient, a Sylvester equation |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 24
"""Points at which a scale is tried before Newton's method starts from the best."""
NEWTON = 8
STEPS = 200
"""Steps of Gauss-Newton at most."""
STILL = 1e-11
"""Relative gain at which Gauss-Newton ends."""


@dataclass(frozen=True)
class Moments:
    """Sums of products of rows, float64.

    Attributes:
        ab: A B^T.
        bb: B B^T.
        cd: C D^T.
        dd: D D^T.
    """

    ab: Tensor
    bb: Tensor
    cd: Tensor
    dd: Tensor

    def height(self, g: Tensor, h: Tensor) -> Tensor:
        """f(g) less what does not depend on g, [..]; h = g^-T."""
        incoming = (g @ self.bb * g).sum((-1, -2)) - 2 * (self.ab * g).sum((-1, -2))
        return incoming + (h @ self.dd * h).sum((-1, -2)) - 2 * (self.cd * h).sum((-1, -2))


def scales(p: Tensor, b: Tensor, q: Tensor, d: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """The s with the least b s^2 - 2 p s + d / s^2 - 2 q / s, and the value there.

    A unit without entries on one side goes where the other side wants it, if that is a scale.

    Args:
        p: <a, b> of incoming weights, any shape.
        b: |b|^2.
        q: <c, d> of outgoing weights.
        d: |d|^2.
        signed: whether s may be negative.
    """
    s = _positive(p, b, q, d)
    value = _value(s, p, b, q, d)
    if signed:
        other = _positive(-p, b, -q, d)
        value_there = _value(-other, p, b, q, d)
        s = torch.where(value_there < value, -other, s)
        value = torch.minimum(value, value_there)
    return s, value


def _value(s: Tensor, p: Tensor, b: Tensor, q: Tensor, d: Tensor) -> Tensor:
    return b * s * s - 2 * p * s + d / (s * s) - 2 * q / s


def _positive(p: Tensor, b: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """The best positive s: a grid over where roots can be, then Newton in log s."""
    p, b, q, d = torch.broadcast_tensors(p, b, q, d)
    one_sided = torch.ones_like(p)
    one_sided = torch.where((d <= 0) & (b > 0) & (p > 0), p / b, one_sided)
    one_sided = torch.where((b <= 0) & (d > 0) & (q > 0), d / q, one_sided)
    both = (b > 0) & (d > 0)
    b, d = torch.where(both, b, 1.0), torch.where(both, d, 1.0)
    # s = unit exp t makes it x^4 - alpha x^3 + gamma x - 1, whose roots lie within 1 + max.
    unit = (d / b) ** 0.25
    size = (b * d).sqrt()
    alpha, gamma = p * unit / size, q / (unit * size)
    far = torch.maximum(alpha.abs(), gamma.abs()).log1p() + 0.1

    # f is a multiple of (x^2 + 1/x^2) / 2 - alpha x - gamma / x.
    def height(x: Tensor, y: Tensor) -> Tensor:
        return (x * x + y * y) / 2 - alpha * x - gamma * y

    best = torch.ones_like(p)
    least = height(best, best)
    step = (2 * far / GRID).exp()
    x, y = (-far).exp(), far.exp()
    for _ in range(GRID + 1):
        here = height(x, y)
        best = torch.where(here < least, x, best)
        least = torch.minimum(least, here)
        x, y = x * step, y / step
    reach = 2 * far / GRID
    for _ in range(NEWTON):
        y = 1 / best
        slope = best * best - y * y - alpha * best + gamma * y
        bend = 2 * (best * best + y * y) - alpha * best - gamma * y
        bend = torch.where(bend > 0, bend, 2 * (best * best + y * y))
        best = best * (-torch.clamp(slope / bend, -reach, reach)).exp()
    return torch.where(both, unit * best, one_sided)


def procrustes(products: Tensor) -> Tensor:
    """The orthogonal Q with the largest <products, Q>, [.., k, k]."""
    U, _, Vh = torch.linalg.svd(products)
    return U @ Vh


def turned(moments: Moments, is_compact: bool) -> tuple[Tensor, Tensor]:
    """The best scale and rotation of pairs: log scale and angle, [..]; scale 0 if ``is_compact``.

    With g = e^t R(u) the sum is e^2t b + e^-2t d - 2 |e^t z + e^-t y| at the best u, z and y the
    components of the products along 1 and the quarter turn.
    """

    def parts(M: Tensor) -> Tensor:
        along, across = M[..., 0, 0] + M[..., 1, 1], M[..., 1, 0] - M[..., 0, 1]
        return torch.stack([along, across], -1)

    z, y = parts(moments.ab), parts(moments.cd)
    b, d = (M.diagonal(dim1=-2, dim2=-1).sum(-1) for M in (moments.bb, moments.dd))
    t = torch.zeros_like(b)
    if not is_compact:

        def height(t: Tensor) -> Tensor:
            both = t.exp()[..., None] * z + (-t).exp()[..., None] * y
            return (2 * t).exp() * b + (-2 * t).exp() * d - 2 * both.norm(dim=-1)

        low = torch.full_like(b, -math.log(1e3))
        points = torch.stack([low * (1 - i / 200) for i in range(401)])
        heights = torch.stack([height(point) for point in points])
        at = heights.argmin(0)
        middle = points.gather(0, at[None])[0]
        width = -low / 200
        for _ in range(60):
            # The best of three points of an interval that halves: f is convex near its minimum.
            tried = torch.stack([middle - width / 2, middle, middle + width / 2])
            middle = tried.gather(0, torch.stack([height(x) for x in tried]).argmin(0)[None])[0]
            width = width / 2
        t = torch.where((b > 0) & (d > 0), middle, t)
    both = t.exp()[..., None] * z + (-t).exp()[..., None] * y
    return t, torch.atan2(both[..., 1], both[..., 0])


def general(moments: Moments) -> tuple[Tensor, Tensor]:
    """g near 1 at which f has a minimum, and its inverse, [blocks, k, k].

    From the better of 1 and the Procrustes solution, by Gauss-Newton; a block whose step gains
    nothing halves it.
    """
    eye = torch.eye(moments.bb.shape[-1], dtype=torch.float64).expand_as(moments.bb)
    Q = procrustes(moments.ab + moments.cd)
    better = moments.height(Q, Q) < moments.height(eye, eye)
    g = torch.where(better[:, None, None], Q, eye).clone()
    inverse = g.mT.clone()
    now = moments.height(g, inverse.mT)
    long = torch.ones_like(now)
    for _ in range(STEPS):
        h = inverse.mT
        bb, dd = g @ moments.bb @ g.mT, h @ moments.dd @ h.mT
        right = moments.ab @ g.mT - bb - (moments.cd @ h.mT - dd).mT
        T = _sylvester(dd, bb, right) * long[:, None, None]
        norm = T.norm(dim=(-1, -2), keepdim=True)
        T = T / norm.clamp(min=1.0)
        there, back = torch.linalg.matrix_exp(T) @ g, inverse @ torch.linalg.matrix_exp(-T)
        found = moments.height(there, back.mT)
        gains = found < now
        long = torch.where(gains, (2 * long).clamp(max=1.0), long / 4)
        g = torch.where(gains[:, None, None], there, g)
        inverse = torch.where(gains[:, None, None], back, inverse)
        moved = torch.where(gains, now - found, 0.0)
        now = torch.minimum(now, found)
        if bool(((moved <= STILL * now.abs()) & (gains | (long < 1e-6))).all()):
            break
    return g, inverse


def _sylvester(left: Tensor, right: Tensor, given: Tensor) -> Tensor:
    """X with left X + X right = given, for positive semi-definite left and right."""
    x, U = torch.linalg.eigh(left)
    y, V = torch.linalg.eigh(right)
    sums = x[..., :, None] + y[..., None, :]
    floor = 1e-12 * sums.amax((-1, -2), keepdim=True).clamp(min=1e-300)
    return U @ ((U.mT @ given @ V) / sums.clamp(min=floor)) @ V.mT
