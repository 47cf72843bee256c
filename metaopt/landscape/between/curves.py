"""Curves with control points, of which the ends are trained networks.

Bezier   w(t) = sum_i binom(n-1, i) t^i (1-t)^(n-1-i) p_i
chain    w(t) = sum_i max(0, 1 - |t (n-1) - i|) p_i
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from metaopt.landscape.between.control_points import ControlPoints
from metaopt.landscape.between.curve_files import read_curve, write_curve
from metaopt.landscape.between.layout import Layout
from metaopt.landscape.between.weight_curve import WeightCurve
from metaopt.landscape.samples import Loss
from metaopt.symmetry.discovery.find import plain


class Curve(WeightCurve):
    """What ``metaopt.connect`` returns: a curve through trained networks, over t from 0 to 1.

    End k of K is at t = k / (K - 1), reproduced bit for bit. A star goes from each end to the next
    by way of its centre.

    Args:
        template: a model of the structure. It is kept, not copied, and never changed; parameters
            that are not trained and equal in all ends are its own.
        points: the control points.
        layout: how they make the curve.
        end_buffers: the buffers of each end, by path.
        loss: (outputs, targets) -> a scalar, the mean over the samples, or None.
        weight_decay: wd of the penalty (wd/2) |w(t)|^2.
    """

    def __init__(
        self,
        template: nn.Module,
        points: ControlPoints,
        layout: Layout,
        end_buffers: Sequence[Mapping[str, Tensor]],
        loss: Loss | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(template, loss, weight_decay)
        self.points = points
        self.layout = layout
        self.end_buffers = [dict(buffers) for buffers in end_buffers]

    @property
    def ends(self) -> int:
        """K, the number of ends."""
        return self.layout.ends

    def weights(self, t: float) -> dict[str, Tensor]:
        """The parameters at t, by path: new tensors, of the dtypes of the ends.

        Raises:
            ValueError: if t is not from 0 to 1.
        """
        return self.points.at(self.layout.at(t))

    def control_point(self, number: int) -> dict[str, Tensor]:
        """The parameters of a control point, by path.

        Args:
            number: its place. A path has its points in order, ends and bends; a star has its ends
                first and its centre last.
        """
        return self.points.at([(number, 1.0)])

    def buffers(self, t: float) -> dict[str, Tensor]:
        """The buffers at t, by path: those of an end there.

        Elsewhere floating-point buffers are interpolated in a straight line, and others are those
        of the nearer end.

        Raises:
            ValueError: if t is not from 0 to 1.
        """
        number, x = self.layout.between(t)
        one, other = self.end_buffers[number], self.end_buffers[number + 1]
        return {path: _mixed(one[path], other[path], x) for path in one}

    def save(self, path: str | Path) -> None:
        """Write the curve to a safetensors file, whole or not at all.

        It holds all control points, the buffers of the ends and how the points make the curve; not
        the loss.

        Raises:
            WriteError: if it cannot be written.
        """
        write_curve(Path(path), self.points, self.layout, self.end_buffers, self.weight_decay)

    @staticmethod
    def load(path: str | Path, model: nn.Module, loss: Loss | None = None) -> Curve:
        """Read a curve that ``save`` wrote; no code from the file is run.

        Args:
            path: the file.
            model: a model of the curve's structure, e.g. a new one. It is kept, not copied, and
                never changed.
            loss: the loss, for ``evaluate`` and ``plane``.

        Raises:
            ValueError: if the file is missing, damaged, no curve, or of another model; the message
                names the first parameter that differs.
        """
        template = plain(model)
        found = read_curve(Path(path), template)
        return Curve(
            template, found.points, found.layout, found.end_buffers, loss, found.weight_decay
        )

    def __repr__(self) -> str:
        layout = self.layout
        if layout.shape == "star":
            return f"Curve(star of {layout.ends} ends)"
        return f"Curve({layout.kind}, {layout.ends} ends, {layout.bends} bends between two)"


def _mixed(one: Tensor, other: Tensor, x: float) -> Tensor:
    if x in (0, 1) or not one.is_floating_point():
        return (one if x <= 0.5 else other).clone()
    return one.lerp(other, x)
