"""Control points of curves: the parameters of several models, each point one flat vector.

    w = sum_i c_i p_i

One operation for each control point then interpolates all parameters of a kind at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from metaopt.landscape.between.layout import Share


@dataclass(eq=False)
class Part:
    """The parameters of one dtype and device that are trained, or of those that are not.

    Attributes:
        paths: the parameters.
        shapes: their shapes.
        dtype: their dtype. Points of less than 32 bits are kept in float32, in which small steps
            are not lost.
        is_trained: whether bends are trained in these parameters.
        points: the control points, each [entries].
    """

    paths: list[str]
    shapes: list[torch.Size]
    dtype: torch.dtype
    is_trained: bool
    points: list[Tensor]

    @staticmethod
    def of(
        paths: list[str],
        points: Sequence[Sequence[Tensor]],
        dtype: torch.dtype,
        device: torch.device,
        is_trained: bool,
    ) -> Part:
        """The parameters at these paths, of each control point, copied into vectors."""
        kept = dtype if dtype.itemsize >= torch.float32.itemsize else torch.float32
        vectors = [
            torch.cat([value.detach().to(device, kept).flatten() for value in point])
            for point in points
        ]
        return Part(paths, [value.shape for value in points[0]], dtype, is_trained, vectors)

    def write(self, shares: Sequence[Share], into: Tensor) -> None:
        """w = sum_i c_i p_i, written into a vector; the coefficients sum to 1.

        A point alone is copied bit for bit, and entries that all points share stay bit for bit.
        """
        (row, total), *others = shares
        if not others:
            into.copy_(self.points[row])
        so_far = self.points[row]
        for row, c in others:
            total += c
            so_far = torch.lerp(so_far, self.points[row], c / total, out=into)

    def views(self, vector: Tensor) -> list[Tensor]:
        """The parameters in a vector [entries], each in its shape."""
        sizes = [shape.numel() for shape in self.shapes]
        ends = list(accumulate(sizes, initial=0))
        return [
            vector[start : start + size].view(shape)
            for start, size, shape in zip(ends, sizes, self.shapes, strict=False)
        ]

    def at(self, shares: Sequence[Share]) -> dict[str, Tensor]:
        """The parameters at w = sum_i c_i p_i, in their dtype."""
        vector = torch.empty_like(self.points[0])
        self.write(shares, vector)
        return dict(zip(self.paths, self.views(vector.to(self.dtype)), strict=True))


@dataclass(eq=False)
class ControlPoints:
    """All parameters of several models of one structure.

    Attributes:
        parts: the parameters that are interpolated.
        constants: parameters that are not trained and are the same in all models, by path.
        order: the paths of all parameters, in the order of the model.
    """

    parts: list[Part]
    constants: dict[str, Tensor]
    order: list[str]

    @staticmethod
    @torch.no_grad()
    def of(models: Sequence[nn.Module]) -> ControlPoints:
        """The models' parameters, copied; those that stay constant are the first model's own.

        Raises:
            ValueError: if a parameter is complex, or differs and has no real numbers.
        """
        named = [dict(model.named_parameters()) for model in models]
        parts: dict[tuple[torch.dtype, torch.device, bool], list[str]] = {}
        constants = {}
        for path, parameter in named[0].items():
            if parameter.is_complex():
                raise ValueError(f"parameter {path!r} is complex: curves need real parameters")
            same = all(_equal(one[path], parameter) for one in named[1:])
            if not parameter.requires_grad and same:
                constants[path] = parameter.detach()
                continue
            if not parameter.is_floating_point():
                raise ValueError(
                    f"parameter {path!r} is {parameter.dtype} and differs between models: only "
                    f"floating-point numbers can be interpolated"
                )
            key = (parameter.dtype, parameter.device, parameter.requires_grad)
            parts.setdefault(key, []).append(path)
        return ControlPoints(
            [
                Part.of(paths, [[one[path] for path in paths] for one in named], *key)
                for key, paths in parts.items()
            ],
            constants,
            list(named[0]),
        )

    def at(self, shares: Sequence[Share]) -> dict[str, Tensor]:
        """All parameters at w = sum_i c_i p_i, by path; bit for bit where one point is alone."""
        found = dict(self.constants)
        for part in self.parts:
            found |= part.at(shares)
        return {path: found[path] for path in self.order}

    def distance(self, first: int, second: int) -> float:
        """|p_i - p_j|, over all parameters that are interpolated."""
        squares = 0.0
        for part in self.parts:
            difference = part.points[first].double() - part.points[second]
            squares += float(difference.square().sum())
        return math.sqrt(squares)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one.to(other.device), other)
