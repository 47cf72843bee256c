"""What an alignment did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.tables import markdown_table
from metaopt.landscape.between.align_layout import UNITWISE, Layout
from metaopt.landscape.between.align_sides import Log, Shift
from metaopt.symmetry.elements import Element, Relabelling
from metaopt.symmetry.groups import Group, Symmetry


@dataclass(frozen=True)
class Moved:
    """What moved along one symmetry.

    Attributes:
        symmetry: the symmetry, with the group that was used.
        permuted: how many units (or coordinates of a stream, or heads) changed places.
        flipped: how many units changed their signs.
        generator: the norm of the generator of what is continuous, (|log P|^2 + |log Q|^2)^(1/2)
            for g = Q P, Q orthogonal and P positive definite, over all blocks; of a translation
            its length. Units that a permutation moves are counted in their new places.
    """

    symmetry: Symmetry
    permuted: int = 0
    flipped: int = 0
    generator: float = 0.0


@dataclass(frozen=True)
class AlignReport:
    """What ``metaopt.align`` did.

    Attributes:
        by: what it went by.
        before: the distance of the parameters of a and b, (sum of squared differences)^(1/2).
        after: the same after b has moved.
        moved: what moved along each symmetry that was used.
        sweeps: how often all symmetries were gone through, over all restarts.
        drift: |f(b moved) - f(b)| / |f(b)| on the data; None without data.
        assumes: what must be true of the model or its inputs, and was not checked.
        left: symmetries that were left alone, with reasons, by name.
        steps: the elements that took b there, in order, each with its symmetry: what
            ``metaopt.symmetry_curve`` follows, if none of them is discrete.
    """

    by: str
    before: float
    after: float
    moved: tuple[Moved, ...]
    sweeps: int
    drift: float | None
    assumes: tuple[str, ...]
    left: dict[str, str]
    steps: tuple[tuple[Symmetry, Element], ...] = ()

    def __str__(self) -> str:
        drift = "" if self.drift is None else f", outputs drift by {self.drift:.1e}"
        lines = [
            f"distance {self.before:.6g} -> {self.after:.6g} by {self.by}, {self.sweeps} sweeps"
            f"{drift}"
        ]
        rows = [
            [
                one.symmetry.short_name,
                str(one.symmetry.group),
                f"{one.permuted or ''}",
                f"{one.flipped or ''}",
                f"{one.generator:.3g}" if one.generator else "",
            ]
            for one in self.moved
        ]
        lines.append(markdown_table(["symmetry", "group", "permuted", "flipped", "|T|"], rows))
        lines += [f"assumed: {said}" for said in self.assumes]
        lines += [f"left alone: {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)

    __repr__ = __str__


def told(log: Log, plans: Sequence[Layout], others: Sequence[Symmetry]) -> tuple[Moved, ...]:
    """What a log did along each symmetry, all its steps together."""
    found = [Moved(plan.symmetry, permuted=_permuted(plan.symmetry, log)) for plan in plans]
    for one in others:
        if one.group is Group.TRANSLATION:
            found.append(Moved(one, generator=_length(one, log)))
        else:
            found.append(_composed(one, log, plans))
    return tuple(found)


def _permuted(symmetry: Symmetry, log: Log) -> int:
    start = torch.arange(symmetry.size).expand(symmetry.blocks, -1)
    order = start
    for one, element in log:
        if one is symmetry and isinstance(element, Relabelling):
            order = element.act(order[None, :, :, None])[0, :, :, 0]
    return int((order != start).sum())


def _length(symmetry: Symmetry, log: Log) -> float:
    total: dict[str, Tensor] = {}
    for one, element in log:
        if one is symmetry and isinstance(element, Shift):
            for path, v in element.given.items():
                total[path] = total[path] + v if path in total else v
    return sum(float(v.square().sum()) for v in total.values()) ** 0.5


def _composed(symmetry: Symmetry, log: Log, plans: Sequence[Layout]) -> Moved:
    """Signs and generator of all steps, parts moved along with the units that carry them."""
    is_unitwise = symmetry.group in UNITWISE
    size = symmetry.size
    g = torch.eye(size, dtype=torch.float64).expand(symmetry.blocks, size, size)
    if is_unitwise:
        g = torch.ones(symmetry.blocks, size, 1, dtype=torch.float64)
    carriers = {
        plan.symmetry: one.parts
        for plan in plans
        for one in plan.carried
        if one.symmetry is symmetry
    }
    for one, element in log:
        if one is symmetry:
            g = element.act(g[None])[0]
        elif one in carriers and isinstance(element, Relabelling):
            parts = carriers[one]
            moved = element.act(parts[None])[0]
            flat = g.reshape(-1, 1) if is_unitwise else g.flatten(1)
            new = flat.clone()
            new[parts.flatten()] = flat[moved.flatten()]
            g = new.reshape(g.shape)
    if is_unitwise:
        flipped = int((g < 0).sum())
        return Moved(symmetry, flipped=flipped, generator=float(g.abs().log().norm()))
    return Moved(symmetry, generator=_norm(g))


def _norm(g: Tensor) -> float:
    """(|log P|^2 + |log Q|^2)^(1/2) of g = Q P."""
    U, S, Vh = torch.linalg.svd(g)
    angles = torch.linalg.eigvals(U @ Vh).angle()
    return float((S.log().square().sum() + angles.square().sum()).sqrt())
