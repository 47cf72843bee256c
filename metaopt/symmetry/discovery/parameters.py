"""The coordinates along the axes of a model's parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from metaopt.symmetry.discovery.relations import Relations, Source
from metaopt.symmetry.discovery.values import FIXED, Labels, Part, Value

Rows = tuple[int, int]


@dataclass(eq=False)
class Parameters:
    """Gives each parameter its value, with coordinates along its axes.

    An axis of length 1 has one if it is that of a layer's only unit.

    Attributes:
        relations: where the sources of coordinates are noted.
        tensors: path -> the tensor.
        unmoved: path -> why the tensor must not be moved.
    """

    relations: Relations
    tensors: dict[str, Tensor]
    unmoved: dict[str, str]
    _found: dict[tuple[str, Rows | None], Value] = field(default_factory=dict)
    _columns: dict[tuple[str, int], Labels] = field(default_factory=dict)

    def value(self, path: str, rows: Rows | None = None) -> Value:
        """The value of a parameter.

        Args:
            path: its path.
            rows: (start, length) on axis 0, if only these rows are meant. They have coordinates of
                their own along the other axes.
        """
        if (path, rows) not in self._found:
            shape = list(self.tensors[path].shape)
            if rows is not None:
                shape[0] = rows[1]
            parts = () if path in self.unmoved else self._parts(path, shape, rows)
            gains = path if len(shape) == 1 and parts else ""
            if gains and self._is_uniform(path):
                self.relations.equal_gains.add(path)
            self._found[path, rows] = Value(tuple(shape), parts=parts, gains=gains, weight=True)
        return self._found[path, rows]

    def columns(self, path: str, groups: int) -> Labels:
        """The coordinates that the rows of a grouped convolution read, each row those of its group.

        Args:
            path: the path of the weight [groups O', I', ..].
            groups: the number of groups.
        """
        if (path, groups) not in self._columns:
            labels = self.relations.new([groups * self.tensors[path].shape[1]])
            self._columns[path, groups] = labels
            self.note(path, 1, labels, groups=groups)
        return self._columns[path, groups]

    def moves(self, path: str) -> bool:
        """Whether a tensor is a parameter that may move; buffers do where a rule asks for them."""
        return path in self.tensors and isinstance(self.tensors[path], nn.Parameter)

    def _parts(self, path: str, shape: list[int], rows: Rows | None) -> tuple[Part, ...]:
        parts = []
        for axis, n in enumerate(shape):
            if n > 1 or self._is_one_unit(path, axis):
                labels = self.relations.new([n])
                start = rows[0] if rows is not None and axis == 0 else 0
                placed = np.concatenate([np.full(start, FIXED), labels])
                self.note(path, axis, placed, rows if axis else None)
                parts.append(Part((axis - len(shape),), labels))
        return tuple(parts)

    def _is_one_unit(self, path: str, axis: int) -> bool:
        """Whether an axis of length 1 has the one unit of a layer, and is not to be broadcast."""
        owner, _, name = path.rpartition(".")
        weight = self.tensors.get(f"{owner}.weight" if owner else "weight")
        if weight is None or weight.dim() < 2 or name not in ("weight", "bias"):
            return False
        return axis < 2 and weight.shape[axis] == 1

    def note(
        self, path: str, axis: int, labels: Labels, rows: Rows | None = None, groups: int = 1
    ) -> None:
        """Remember which labels stand along an axis of a parameter."""
        order = self.relations.call
        self.relations.sources.append(Source(path, axis, labels, rows, groups, order))

    def _is_uniform(self, path: str) -> bool:
        tensor = self.tensors[path]
        if tensor.is_meta or tensor.dim() != 1:
            return False
        return bool((tensor.detach() == tensor.detach()[0]).all())
