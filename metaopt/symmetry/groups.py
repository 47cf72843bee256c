"""What a symmetry of a model is: which parts of which parameters a group moves, and how.

    incoming slot x -> g x,      outgoing slot y -> g^-T y

An incoming slot makes a hidden space (rows of W_in, entries of b_in). An outgoing slot reads it
(columns of W_out): W_in -> g W_in, b_in -> g b_in, W_out -> W_out g^-1. The group acts along the
axis of the hidden space. Gradients, and what is linear in them, move by the inverse transpose:
by g^-T if the parameter moves by g, and by g if the parameter moves by g^-T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor

from metaopt.symmetry.names import short
from metaopt.symmetry.table import Row, printed


class Group(StrEnum):
    """The groups that ``symmetries`` finds in a model; their actions read no data."""

    LINEAR = "general linear"
    ORTHOGONAL = "orthogonal"
    ROTARY = "scale and rotation"
    """Of pairs of coordinates: g = exp(t I + u J), J a quarter turn."""
    SCALING = "positive scaling"
    SIGNS = "sign flips"
    PERMUTATION = "permutation"
    TRANSLATION = "translation"
    """x -> x + v, v the same for all units of a block."""


ALL = frozenset({Group.LINEAR, Group.ORTHOGONAL, Group.SCALING, Group.SIGNS, Group.PERMUTATION})
"""What acts on a pair of linear maps with nothing but linear maps between them."""


@dataclass(frozen=True)
class Slot:
    """The part of one parameter (or buffer), along one axis, on which a group acts.

    A group element is a matrix [size, size] for each of some blocks. The entries from ``start`` on
    are read as factors, row-major: ``block`` factors together number the blocks, ``unit`` factors
    the units of a block, and each element acts on all copies that ``copy`` factors number.

    Attributes:
        module: the path of the module; "" is the model itself.
        name: the name of the tensor within the module.
        axis: the axis of the tensor, from 0.
        start: the first index on that axis.
        factors: ("copy", "block" or "unit", size) of each factor; () means that all entries of
            block after block follow each other. ("pick:i", size) takes the i-th of ``size``
            stretches alone, as queries are taken where each head has queries, keys and values in
            turn. In attention a head is a block. A flattened image
            has the positions of a channel as the last factor, copies; in a flattened sequence
            copies come first.
        rows: (start, length) on axis 0, if only these rows read the hidden space.
        groups: the number of groups, if a grouped convolution [groups O', I', ...] reads the space.
        power: the entries move by g^power, where the group scales; 2 for a running variance.
    """

    module: str
    name: str
    axis: int
    start: int = 0
    factors: tuple[tuple[str, int], ...] = ()
    rows: tuple[int, int] | None = None
    groups: int = 1
    power: int = 1

    @property
    def path(self) -> str:
        """The path of the tensor within the model."""
        return f"{self.module}.{self.name}" if self.module else self.name

    def length(self, blocks: int, size: int) -> int:
        """How many entries of the axis belong to the slot."""
        return math.prod(n for _, n in self.factors) if self.factors else blocks * size

    def apply(
        self, tensor: Tensor, blocks: int, size: int, action: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A copy of ``tensor`` in which ``action`` has replaced the entries of the slot.

        Args:
            tensor: a tensor with the shape of the parameter.
            blocks: the number of group elements that act side by side.
            size: the width of each.
            action: a linear map of tensors [copies, blocks, size, any].
        """
        result = tensor.clone()
        self.change(result, blocks, size, action)
        return result

    def entries(self, tensor: Tensor, blocks: int, size: int) -> Tensor:
        """The entries of the slot, [copies, blocks, size, any]; arguments as of ``apply``."""
        if self.groups > 1:
            tensor = self._joined(tensor).flatten(1, 2)
        _, apart, order = self._apart(tensor, blocks, size)
        ordered = apart.permute(*order, len(order))
        return ordered.reshape(-1, blocks, size, ordered.shape[-1])

    def columns(self, tensor: Tensor, blocks: int, size: int) -> Tensor:
        """The same with all copies side by side, [blocks, size, any]."""
        return self.entries(tensor, blocks, size).permute(1, 2, 0, 3).flatten(2)

    def change(
        self, tensor: Tensor, blocks: int, size: int, action: Callable[[Tensor], Tensor]
    ) -> None:
        """Replace the entries of the slot in place; arguments as of ``apply``."""
        if self.groups == 1:
            return self._change(tensor, blocks, size, action)
        apart = self._joined(tensor)
        joined = apart.flatten(1, 2).clone()
        self._change(joined, blocks, size, action)
        apart.copy_(joined.reshape(apart.shape))
        return None

    def _change(
        self, tensor: Tensor, blocks: int, size: int, action: Callable[[Tensor], Tensor]
    ) -> None:
        (whole, stretch), apart, order = self._apart(tensor, blocks, size)
        last = len(order)
        ordered = apart.permute(*order, last)
        given = ordered.reshape(-1, blocks, size, ordered.shape[-1])
        moved = action(given)
        if moved is given:
            return
        back = [order.index(i) for i in range(last)]
        apart.copy_(moved.reshape(ordered.shape).permute(*back, last))
        if whole.data_ptr() != stretch.data_ptr():
            stretch.copy_(whole.reshape(stretch.shape))

    def _joined(self, tensor: Tensor) -> Tensor:
        """[groups O', I', ...] -> [O', groups, I', ...]: all channels, on axes 1 and 2."""
        return tensor.unflatten(0, (self.groups, -1)).transpose(0, 1)

    def _apart(
        self, tensor: Tensor, blocks: int, size: int
    ) -> tuple[tuple[Tensor, Tensor], Tensor, list[int]]:
        """The entries by their factors.

        Returns:
            All entries [factors .., any], which may be a copy, with the part of the tensor that
            they are; of them those that are picked; and the order of the factors' axes in which
            copies come first, then blocks, then units.
        """
        region = tensor if self.rows is None else tensor.narrow(0, *self.rows)
        factors = self.factors or (("block", blocks), ("unit", size))
        roles = [role for role, _ in factors]
        stretch = region.narrow(self.axis, self.start, self.length(blocks, size)).movedim(
            self.axis, 0
        )
        whole = stretch.reshape(*(n for _, n in factors), -1)
        picked = tuple(
            int(role.partition(":")[2]) if role.startswith("pick") else slice(None)
            for role in roles
        )
        kept = [role for role in roles if not role.startswith("pick")]
        order = [i for kind in ("copy", "block", "unit") for i, r in enumerate(kept) if r == kind]
        return (whole, stretch), whole[picked], order


@dataclass(frozen=True)
class Symmetry:
    """A group that acts on some parameters of a model and does not change the model's outputs.

        f(x; g w) = f(x; w)   for all elements g of the group

    Attributes:
        name: the modules that make the hidden space, and those that read it.
        group: the group from which ``teleport`` draws elements.
        size: the width of an element: the number of hidden units, in attention those of one head.
        incoming: the slots that move by g.
        outgoing: the slots that move by g^-T.
        blocks: the number of elements side by side (heads); each has its own generator.
        allows: all groups that do not change the outputs; ``group`` is one of them. Positive
            scaling together with sign flips is scaling by any numbers but 0.
        assumes: what must be true of the model or its inputs, and was not checked; "" if nothing.
        blurs: paths of parameters that do not move, but whose gradients after a move are no known
            function of those before it (equal gains in front of which a stream is rotated).
        free: the dimension of a translation; other groups' follows from their sizes.

    Raises:
        ValueError: if ``group`` is not in ``allows``.
    """

    name: str
    group: Group
    size: int
    incoming: tuple[Slot, ...]
    outgoing: tuple[Slot, ...]
    blocks: int = 1
    allows: frozenset[Group] = ALL
    assumes: str = ""
    blurs: tuple[str, ...] = ()
    free: int = 0

    def __post_init__(self) -> None:
        if self.group not in self.allows:
            raise ValueError(
                f"symmetry {self.name!r}: group {str(self.group)!r} would change the outputs, "
                f"possible are {', '.join(sorted(self.allows))}"
            )

    @property
    def dimension(self) -> int:
        """The dimension of the orbit along which it moves the weights; 0 for discrete groups."""
        n = self.size
        per_block = {
            Group.LINEAR: n * n,
            Group.ORTHOGONAL: n * (n - 1) // 2,
            Group.ROTARY: 2,
            Group.SCALING: n,
        }
        if self.group is Group.TRANSLATION:
            return self.free
        return self.blocks * per_block.get(self.group, 0)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, incoming and outgoing."""
        return self.incoming + self.outgoing

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of the modules whose tensors it moves, each once."""
        return tuple(dict.fromkeys(slot.module for slot in self.slots))

    @property
    def short_name(self) -> str:
        """The name, with modules that differ by one number written as one."""
        return short(self.name)

    def __str__(self) -> str:
        width = f"{self.blocks} x {self.size}" if self.blocks > 1 else str(self.size)
        assumed = f"   [if {self.assumes}]" if self.assumes else ""
        return f"{self.group:<18}  {width:>8}  {self.short_name}{assumed}"


@dataclass(frozen=True)
class Skipped:
    """A module that no symmetry moves, and why.

    Attributes:
        module: its path; "" is the model itself.
        reason: the reason, in one line.
    """

    module: str
    reason: str

    def __str__(self) -> str:
        return f"{self.module or '(the model)'}: {self.reason}"


class Symmetries(list[Symmetry]):
    """The symmetries of a model: a list of ``Symmetry`` that can be printed and edited.

    Args:
        found: the symmetries.
        skipped: the modules that are left alone, with reasons; also an attribute.
    """

    def __init__(self, found: Iterable[Symmetry] = (), skipped: Iterable[Skipped] = ()) -> None:
        super().__init__(found)
        self.skipped = list(skipped)

    @property
    def dimension(self) -> int:
        """The dimension of the orbit along all of them together; an upper bound if some overlap."""
        return sum(symmetry.dimension for symmetry in self)

    def rows(self) -> list[dict[str, Any]]:
        """One plain dictionary for each symmetry, e.g. for ``pandas.DataFrame``.

        Returns:
            Of each: ``group``, ``size``, ``blocks``, ``dimension`` (of the orbit), ``made_by`` and
            ``read_by`` (modules, in short), ``tensors`` (the paths of all that it moves) and
            ``assumes``.
        """
        return [row.plain() for row in self._rows()]

    def _rows(self) -> list[Row]:
        return [
            Row(
                str(symmetry.group),
                symmetry.size,
                symmetry.blocks,
                symmetry.dimension,
                symmetry.name,
                tuple(dict.fromkeys(slot.path for slot in symmetry.slots)),
                symmetry.assumes,
            )
            for symmetry in self
        ]

    def __str__(self) -> str:
        skipped = [(one.module, one.reason) for one in self.skipped]
        moved = {path for symmetry in self for path in symmetry.modules}
        return printed(self._rows(), skipped, moved)

    __repr__ = __str__
