"""What an alignment did."""

from __future__ import annotations

from dataclasses import dataclass

from metaopt.base.tables import markdown_table
from metaopt.symmetry.groups import Symmetry


@dataclass(frozen=True)
class Moved:
    """What moved along one symmetry.

    Attributes:
        symmetry: the symmetry.
        permuted: how many units (streams' coordinates, heads) changed places.
        flipped: how many units changed their signs.
        generator: the norm of the generator of what is continuous, (|log P|^2 + |log Q|^2)^(1/2)
            for g = Q P, Q orthogonal and P positive definite; of a translation, its length.
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
    """

    by: str
    before: float
    after: float
    moved: tuple[Moved, ...]
    sweeps: int
    drift: float | None
    assumes: tuple[str, ...]
    left: dict[str, str]

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
