"""Paths within a group from the identity to an element g, exact at every t.

    g = Q P,   P = (g^T g)^{1/2},   Q(t) = exp(t log Q)
    g(t) = Q(t) exp(t log P),   g(t)^-1 = exp(-t log P) Q(t)^T

log Q is real because Q, if its determinant is 1, turns planes by angles: log g itself need not be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metaopt.symmetry.elements import Diagonal, Element, Matrix, ScaledRotation
from metaopt.symmetry.groups import Group, Symmetry

ROUNDED = 1e-8
"""How far g may be from the group it should be in, as a share of its norm."""
TURNED = 1e-12
"""The sine below which a plane of a Schur form is not turned, or turned by half a turn."""


class GroupPath(Protocol):
    """t -> g(t), g(0) = 1 and g(1) = g."""

    def at(self, t: float) -> Element:
        """g(t)."""


@dataclass(frozen=True, eq=False)
class _Scaling:
    """exp(t log g) for factors g > 0, logarithms float64 [blocks, size]."""

    logarithms: Tensor

    def at(self, t: float) -> Element:
        return Diagonal(t * self.logarithms)


@dataclass(frozen=True, eq=False)
class _Rotary:
    """exp(t (a I + u J)), each float64 [blocks]."""

    logarithms: Tensor
    angles: Tensor

    def at(self, t: float) -> Element:
        return ScaledRotation(t * self.logarithms, t * self.angles)


@dataclass(frozen=True, eq=False)
class _Rotation:
    """Q(t) = Z R(t) Z^T; R(t) turns planes (i, j) of coordinates by t times their angles."""

    frame: Tensor
    planes: list[tuple[int, int]]
    angles: list[float]

    def at(self, t: float) -> Tensor:
        turned = torch.eye(len(self.frame), dtype=torch.float64)
        if self.planes:
            i, j = torch.tensor(self.planes).T
            angles = t * torch.tensor(self.angles, dtype=torch.float64)
            turned[i, i] = turned[j, j] = angles.cos()
            turned[j, i], turned[i, j] = angles.sin(), -angles.sin()
        return self.frame @ turned @ self.frame.T


@dataclass(frozen=True, eq=False)
class _Polar:
    """exp(t log Q) exp(t log P) of each block, P = V diag(s) V^T."""

    g: Tensor
    rotations: list[_Rotation]
    scales: Tensor
    axes: Tensor

    def at(self, t: float) -> Element:
        if t == 1:
            return Matrix(self.g, torch.linalg.inv(self.g))
        Q = torch.stack([rotation.at(t) for rotation in self.rotations])
        up = (self.axes * self.scales[:, None, :] ** t) @ self.axes.mT
        down = (self.axes * self.scales[:, None, :] ** -t) @ self.axes.mT
        return Matrix(Q @ up, down @ Q.mT)


def path_to(symmetry: Symmetry, g: Tensor | Element) -> GroupPath:
    """The path from the identity to an element of a symmetry's group.

    Args:
        symmetry: the symmetry.
        g: the element (see ``symmetry_curve``).

    Raises:
        ValueError: if no path exists, with the reason, or g is no element of the group.
    """
    name, group = symmetry.short_name, symmetry.group
    if group in (Group.PERMUTATION, Group.SIGNS):
        raise ValueError(
            f"symmetry {name!r}: no path joins an element of a discrete group ({group}) to the "
            f"identity: between two of them outputs change; align the models instead"
        )
    if group is Group.TRANSLATION:
        raise ValueError(
            f"symmetry {name!r} is a translation, whose curve is straight: it is the chord, "
            f"connect(..., bends=0)"
        )
    found = _dense(symmetry, g)
    if group is Group.SCALING:
        if not bool((found > 0).all()):
            block, unit = (found <= 0).nonzero()[0].tolist()
            raise ValueError(
                f"symmetry {name!r}: unit {unit} of block {block} is scaled by "
                f"{float(found[block, unit]):.4g}, and no path from 1 reaches it but through 0, "
                f"where outputs change: factors must be above 0"
            )
        return _Scaling(found.log())
    if group is Group.ROTARY:
        return _rotary(name, found)
    return _polar(symmetry, found)


def _dense(symmetry: Symmetry, g: Tensor | Element) -> Tensor:
    """g in float64 on the CPU: factors [blocks, size] of a scaling, else [blocks, size, size]."""
    blocks, size = symmetry.blocks, symmetry.size
    is_scaling = symmetry.group is Group.SCALING
    if isinstance(g, Element):
        one = torch.eye(size, dtype=torch.float64).expand(1, blocks, size, size)
        found = g.act(one.contiguous())[0]
        if is_scaling:
            diagonal = found.diagonal(dim1=-2, dim2=-1)
            _require_near(symmetry, found, torch.diag_embed(diagonal), "a scaling of units")
            found = diagonal
    else:
        found = g.detach().to("cpu", torch.float64)
    wanted = (blocks, size) if is_scaling else (blocks, size, size)
    if blocks == 1 and tuple(found.shape) == wanted[1:]:
        found = found[None]
    if tuple(found.shape) != wanted:
        raise ValueError(
            f"symmetry {symmetry.short_name!r} ({symmetry.group}) needs g of shape {list(wanted)}, "
            f"found {list(found.shape)}"
        )
    if not bool(found.isfinite().all()):
        raise ValueError("g must be finite")
    return found


def _require_near(symmetry: Symmetry, g: Tensor, nearest: Tensor, what: str) -> None:
    if bool((g - nearest).norm() > ROUNDED * g.norm()):
        raise ValueError(f"symmetry {symmetry.short_name!r} ({symmetry.group}): g is not {what}")


def _rotary(name: str, g: Tensor) -> GroupPath:
    along, across = (g[:, 0, 0] + g[:, 1, 1]) / 2, (g[:, 1, 0] - g[:, 0, 1]) / 2
    near = torch.stack([torch.stack([along, -across], 1), torch.stack([across, along], 1)], 1)
    size = torch.hypot(along, across)
    if bool((g - near).norm() > ROUNDED * g.norm()) or bool((size == 0).any()):
        raise ValueError(f"symmetry {name!r} (scale and rotation): g is no rotation times a factor")
    return _Rotary(size.log(), torch.atan2(across, along))


def _polar(symmetry: Symmetry, g: Tensor) -> GroupPath:
    name = symmetry.short_name
    U, scales, Vh = torch.linalg.svd(g)
    for block, smallest in enumerate((scales[:, -1] / scales[:, 0]).tolist()):
        if not smallest > torch.finfo(torch.float64).eps:
            raise ValueError(f"symmetry {name!r}: g is singular in block {block}")
    Q = U @ Vh
    if symmetry.group is Group.ORTHOGONAL:
        _require_near(symmetry, g, Q, "orthogonal")
        scales = torch.ones_like(scales)
    for block, sign in enumerate(torch.linalg.det(Q).tolist()):
        if sign < 0:
            raise ValueError(
                f"symmetry {name!r}: det g < 0 in block {block}, and every path of matrices from "
                f"the identity to it passes a singular one, where outputs change: no curve of "
                f"constant loss exists; reflect one unit of the model first"
            )
    return _Polar(g, [_rotation(one) for one in Q], scales, Vh.mT)


def _rotation(Q: Tensor) -> _Rotation:
    """Q as turns of planes, from its real Schur form; -1 comes in pairs, since det Q = 1."""
    from scipy.linalg import schur

    form, frame = schur(Q.numpy(), output="real")
    planes, angles, reflected = [], [], []
    form_of, i = torch.from_numpy(form), 0
    while i < len(Q):
        is_plane = i + 1 < len(Q) and abs(float(form_of[i + 1, i])) > TURNED
        if is_plane:
            planes.append((i, i + 1))
            angles.append(float(torch.atan2(form_of[i + 1, i], form_of[i, i])))
        elif form_of[i, i] < 0:
            reflected.append(i)
        i += 2 if is_plane else 1
    planes += list(zip(reflected[::2], reflected[1::2], strict=True))
    angles += [torch.pi] * (len(reflected) // 2)
    return _Rotation(torch.from_numpy(frame), planes, angles)
