"""The point of an orbit at which a squared norm is least, for all symmetries of a model together.

    minimise over g   sum over paths of |g x|^2,   x stacks that move like weights or like gradients

At the minimum both halves of the form <x, x> are equal, for each symmetry. One symmetry alone has

    scaling          e^(4 t) = b / a,   a and b the squares of a unit's incoming and outgoing parts
    general linear   P A P = B,   P = g^T g,   P = A^-1 # B (the matrix geometric mean)

if x moves like weights; a and b change places if it moves like gradients. The problem is convex
along each symmetry, so that taking them in turn goes down to the minimum (matrix balancing).

A unit of which one half is 0 has no minimum: t runs off, and in the limit that half of the other
units' sums vanishes. Singular A = L L^T and B have one if M = L^T B L has their rank:
P = N M^-1 N^T + (1 - the projector on the columns of L), N = B L M^(-1/4).

References:
    Bhatia, Positive Definite Matrices (2007), chapter 4; Osborne, On pre-conditioning of matrices
    (1960); Ziyin et al., arXiv 2402.07193.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from metaopt.symmetry.conserved import QUADRATIC, halves
from metaopt.symmetry.elements import Diagonal, Element, Matrix, ScaledRotation
from metaopt.symmetry.groups import Group, Symmetry

SWEEPS = 2000
ENOUGH = 1e-13
"""The largest change of t in a sweep that ends it."""
ROUNDING = 1e-8
"""Below this it also ends if it has not become less."""
RANK = 1e-11
"""Eigenvalues below this share of the largest count as 0."""


class Balanced(dict[Symmetry, Element]):
    """For each symmetry the element that leads to the minimum; where there is none, 1.

    Attributes:
        residual: the largest change of t in the last sweep.
        limits: where t runs to, inf or -inf, and 0 where there is a minimum, by symmetry:
            [blocks, size] for positive scaling, [blocks] for scale and rotation.
        reasons: why a symmetry, or some of its units, has no minimum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.residual = 0.0
        self.limits: dict[Symmetry, Tensor] = {}
        self.reasons: dict[Symmetry, str] = {}


def balanced(
    symmetries: Iterable[Symmetry],
    stacks: Mapping[str, Tensor],
    like: Literal["weights", "gradients"],
) -> Balanced:
    """The elements g at which sum |g x|^2 is least, for symmetries together.

    Args:
        symmetries: those that have a quadratic charge; others are passed over.
        stacks: x, {path: [rows, *shape]}, float64.
        like: how x moves.
    """
    chosen = [one for one in symmetries if one.group in QUADRATIC]
    found = Balanced()
    # With rows on the last axis, a stack is one tensor to slots, and halves are sums over rows.
    now = {path: rows.movedim(0, -1) for path, rows in stacks.items()}
    for _ in range(SWEEPS):
        last, found.residual = found.residual, 0.0
        for symmetry in chosen:
            # Sums are small; what is computed of them is needed by elements on any device.
            incoming, outgoing = (half.cpu() for half in halves(symmetry, now, now))
            weights_like = like == "weights"
            made, read = (incoming, outgoing) if weights_like else (outgoing, incoming)
            if symmetry.group is Group.LINEAR:
                g, size = _matrix_step(symmetry, made, read, found)
                before = found[symmetry].act(_eye(symmetry))[0] if symmetry in found else None
                step: Element = _matrix(g)
                found[symmetry] = step if before is None else _matrix(g @ before)
            else:
                t, lost = _scale_step(symmetry, made, read)
                size = float(t.abs().max())
                if bool(lost.any()):
                    _vanish(symmetry, now, lost, like)
                    found.limits[symmetry] = found.limits.get(symmetry, 0) + lost
                    size = 1.0
                step = _scales(symmetry, t)
                moved = t + logarithm(symmetry, found[symmetry]) if symmetry in found else t
                found[symmetry] = _scales(symmetry, moved)
            _move(symmetry, now, step, like)
            found.residual = max(found.residual, size)
        # Near the minimum rounding may keep it from going on.
        if found.residual < ENOUGH or last <= found.residual < ROUNDING:
            break
    for symmetry, lost in found.limits.items():
        count = int((lost != 0).sum())
        found.reasons[symmetry] = (
            f"{count} of {lost.numel()} units have 0 on one side alone, or in the limit of others"
        )
    return found


def logarithm(symmetry: Symmetry, element: Element) -> Tensor:
    """t = 1/2 log(g^T g) of an element g, [blocks, k], [blocks, k, k] or [blocks]."""
    g = element.act(_eye(symmetry))[0]
    if symmetry.group is Group.SCALING:
        return g.diagonal(dim1=1, dim2=2).log()
    if symmetry.group is Group.ROTARY:
        return g[:, :, 0].norm(dim=1).log()
    values, vectors = torch.linalg.eigh(g.mT @ g)
    return (vectors * (values.log() / 2)[:, None]) @ vectors.mT


def metric(A: Tensor, B: Tensor) -> Tensor | None:
    """The positive P with P A P = B, of positive A and B [k, k]; None if there is none.

    It is A^-1 # B, and not unique where A and B are singular.
    """
    values, vectors = torch.linalg.eigh(A)
    kept = values > RANK * values[-1]
    L = vectors[:, kept] * values[kept].sqrt()
    squares, basis = torch.linalg.eigh(L.mT @ B @ L)
    common = int((squares > RANK**2 * squares[-1]).sum())
    if not _rank(B) == L.shape[1] == common:
        return None
    # With M = L^T B L: P L = B L M^(-1/2), and L^T P L = M^(1/2).
    N = B @ L @ (basis * squares ** (-0.75)) @ basis.mT
    rest = vectors[:, ~kept]
    return N @ N.mT + rest @ rest.mT


def _rank(A: Tensor) -> int:
    values = torch.linalg.eigvalsh(A)
    return int((values > RANK * values[-1]).sum())


def _matrix_step(
    symmetry: Symmetry, made: Tensor, read: Tensor, found: Balanced
) -> tuple[Tensor, float]:
    """g = P^(1/2) of each block, and the largest modulus of log P / 2."""
    one = torch.eye(symmetry.size, dtype=made.dtype)
    metrics = []
    for A, B in zip(made, read, strict=True):
        P = metric(A, B) if bool(A.any()) or bool(B.any()) else one
        if P is None:
            found.reasons[symmetry] = (
                f"its two sides do not meet in all directions: ranks {_rank(A)} and {_rank(B)} of "
                f"{symmetry.size}"
            )
        metrics.append(one if P is None else P)
    values, vectors = torch.linalg.eigh(torch.stack(metrics))
    g = (vectors * values.sqrt()[:, None]) @ vectors.mT
    return g, float(values.log().abs().max()) / 2


def _scale_step(symmetry: Symmetry, made: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """t at which made e^(2 p t) = read e^(-2 q t), and where it runs to without a minimum."""
    powers = [
        max((slot.power for slot in slots), default=1)
        for slots in (symmetry.incoming, symmetry.outgoing)
    ]
    both = (made > 0) & (read > 0)
    t = torch.where(both, (read / made).log() / (2 * sum(powers)), 0)
    limit = torch.full_like(t, torch.inf)
    zero = torch.zeros_like(t)
    lost = torch.where((made > 0) & ~both, -limit, torch.where((read > 0) & ~both, limit, zero))
    return t, lost


def _vanish(symmetry: Symmetry, now: dict[str, Tensor], lost: Tensor, like: str) -> None:
    """The stacks in the limit of some units: their one half goes to 0."""
    factor = (lost == 0).to(next(iter(now.values())))
    factor = factor[..., None] if symmetry.group is Group.SCALING else factor[:, None, None]

    def action(x: Tensor) -> Tensor:
        return factor * x

    for slot in symmetry.slots:
        now[slot.path] = slot.apply(now[slot.path], symmetry.blocks, symmetry.size, action)


def _move(symmetry: Symmetry, now: dict[str, Tensor], element: Element, like: str) -> None:
    for is_incoming, slots in ((True, symmetry.incoming), (False, symmetry.outgoing)):
        for slot in slots:
            g = element.at(slot)
            by_g = is_incoming == (like == "weights")
            act = g.act if by_g else g.act_inversely_transposed
            now[slot.path] = slot.apply(now[slot.path], symmetry.blocks, symmetry.size, act)


def _eye(symmetry: Symmetry) -> Tensor:
    size = symmetry.size
    return torch.eye(size, dtype=torch.float64).expand(1, symmetry.blocks, size, size)


def _matrix(g: Tensor) -> Matrix:
    return Matrix(g, torch.linalg.inv(g))


def _scales(symmetry: Symmetry, t: Tensor) -> Element:
    return Diagonal(t) if symmetry.group is Group.SCALING else ScaledRotation(t, 0 * t)
