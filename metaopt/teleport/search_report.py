"""What a searched teleport did: a report that can be printed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from metaopt.base.tables import markdown_table
from metaopt.symmetry.names import short


@dataclass(frozen=True)
class SearchReport:
    """What a searched teleport did.

    Attributes:
        objective: what was searched for.
        maximise: whether it was made large; otherwise it was made small.
        symmetries: the names of those that were searched along.
        objective_before: its value before; of ``gradient_norm`` and ``level_set`` the squared norm
            |grad L|^2.
        objective_after: its value after.
        norms: {name of the symmetry: the largest norm of the generator of one of its blocks}; of a
            level set {``"level set"``: |w' - w|}.
        drift: ||f(w') - f(w)|| / (||f(w)|| + ||Y||) of the model's outputs on the data, Y the
            targets if they are shaped like the outputs; NaN without data.
        fresh_drift: the same on fresh data; NaN without them.
        loss_change: L(w') - L(w) on the data; NaN without a loss.
        gradients: how often the model's gradient over the data was computed; 0 if those that the
            parameters held were enough.
        seconds: how long all of it took.
        state: what happened to the optimizer's state, in words.
        left: {name of a symmetry: why it was left out}.
        residual: of a level set, |H g/|g|^2 - (g^T H g/|g|^4) g|^2, 0 where the gradient is largest
            on the level set; else NaN.
    """

    objective: str
    maximise: bool
    symmetries: tuple[str, ...]
    objective_before: float
    objective_after: float
    norms: dict[str, float]
    drift: float = math.nan
    fresh_drift: float = math.nan
    loss_change: float = math.nan
    gradients: int = 0
    seconds: float = 0.0
    state: str = "no optimizer given"
    left: dict[str, str] = field(default_factory=dict)
    residual: float = math.nan

    def rows(self) -> list[dict[str, Any]]:
        """A plain dictionary for each symmetry: ``name``, ``norm``, ``left``."""
        moved = [{"name": name, "norm": norm, "left": ""} for name, norm in self.norms.items()]
        return moved + [{"name": n, "norm": 0.0, "left": why} for n, why in self.left.items()]

    def __str__(self) -> str:
        way = "up" if self.maximise else "down"
        values = f"{self.objective_before:.6g} -> {self.objective_after:.6g}"
        rows = [[short(r["name"]), f"{r['norm']:.3g}", r["left"]] for r in self.rows()]
        return "\n".join(
            [
                f"{self.objective} {way}: {values}",
                f"drift {self.drift:.1e}, on fresh data {self.fresh_drift:.1e}; "
                f"optimizer state: {self.state}",
                "",
                markdown_table(["symmetry", "norm of generator", "left alone"], rows),
            ]
        )

    __repr__ = __str__
