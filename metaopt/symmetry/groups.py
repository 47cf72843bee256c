"""What a symmetry of a model is: which parts of which parameters a group moves, and how.

    incoming slot x -> g x,      outgoing slot y -> g^-T y

An incoming slot makes a hidden space (rows of W_in, entries of b_in). An outgoing slot reads it
(columns of W_out): W_in -> g W_in, b_in -> g b_in, W_out -> W_out g^-1. The group acts along the
axis of the hidden space. Gradients, and what is linear in them, move by the inverse transpose:
by g^-T if the parameter moves by g, and by g if the parameter moves by g^-T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor


class Group(StrEnum):
    """The groups that ``symmetries`` finds in a model; their actions read no data."""

    LINEAR = "general linear"
    SCALING = "positive scaling"
    PERMUTATION = "permutation"


ALL = frozenset(Group)
CHANNELWISE = frozenset({Group.SCALING, Group.PERMUTATION})
SCALES = frozenset({Group.SCALING})
RELABELS = frozenset({Group.PERMUTATION})


def largest(allows: frozenset[Group]) -> Group | None:
    """The largest continuous group among those allowed, or None if no continuous one is."""
    return next((group for group in (Group.LINEAR, Group.SCALING) if group in allows), None)


@dataclass(frozen=True)
class Slot:
    """The part of one parameter (or buffer), along one axis, on which a group acts.

    The entries from ``start`` on are read as [outer, blocks, size, inner]. A group element is a
    matrix [size, size] that acts along the third axis; each of the ``blocks`` has an element of its
    own. In attention a head is a block. In a flattened image ``inner`` counts the positions of a
    channel, in a flattened sequence ``outer`` counts the positions.

    Attributes:
        module: the path of the module; "" is the model itself.
        name: the name of the tensor within the module.
        axis: the axis of the tensor, from 0.
        start: the first index on that axis.
        outer: how often the blocks repeat along the axis, with all blocks side by side each time.
        inner: how many consecutive entries belong to one hidden unit.
        rows: (start, length) on axis 0, if only these rows read the hidden space.
        groups: the number of groups, if a grouped convolution [groups O', I', ...] reads the space.
    """

    module: str
    name: str
    axis: int
    start: int = 0
    outer: int = 1
    inner: int = 1
    rows: tuple[int, int] | None = None
    groups: int = 1

    @property
    def path(self) -> str:
        """The path of the tensor within the model."""
        return f"{self.module}.{self.name}" if self.module else self.name

    def apply(
        self, tensor: Tensor, blocks: int, size: int, action: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A copy of ``tensor`` in which ``action`` has replaced the entries of the slot.

        Args:
            tensor: a tensor with the shape of the parameter.
            blocks: the number of group elements that act side by side.
            size: the width of each.
            action: a linear map of tensors [outer, blocks, size, any].
        """
        if self.groups == 1:
            return self._moved(tensor, blocks, size, action)
        # [groups O', I', ...] -> [O', groups I', ...], where all channels lie on axis 1.
        apart = tensor.unflatten(0, (self.groups, -1)).transpose(0, 1)
        moved = self._moved(apart.flatten(1, 2), blocks, size, action)
        return moved.reshape(apart.shape).transpose(0, 1).flatten(0, 1)

    def _moved(
        self, tensor: Tensor, blocks: int, size: int, action: Callable[[Tensor], Tensor]
    ) -> Tensor:
        result = tensor.clone()
        region = result if self.rows is None else result.narrow(0, *self.rows)
        length = self.outer * blocks * size * self.inner
        stretch = region.narrow(self.axis, self.start, length).movedim(self.axis, 0)
        moved = action(stretch.reshape(self.outer, blocks, size, -1))
        stretch.copy_(moved.reshape(stretch.shape))
        return result


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
        allows: all groups that do not change the outputs; ``group`` is one of them.
        assumes: what must be true of the model or its inputs, and was not checked; "" if nothing.

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

    def __post_init__(self) -> None:
        if self.group not in self.allows:
            raise ValueError(
                f"symmetry {self.name!r}: group {str(self.group)!r} would change the outputs, "
                f"possible are {', '.join(sorted(self.allows))}"
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, incoming and outgoing."""
        return self.incoming + self.outgoing

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of the modules whose tensors it moves, each once."""
        return tuple(dict.fromkeys(slot.module for slot in self.slots))

    def __str__(self) -> str:
        width = f"{self.blocks} x {self.size}" if self.blocks > 1 else str(self.size)
        assumed = f"   [if {self.assumes}]" if self.assumes else ""
        return f"{self.group:<16}  {width:>8}  {self.name}{assumed}"


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

    def __str__(self) -> str:
        lines = [f"{len(self)} {'symmetry' if len(self) == 1 else 'symmetries'}"]
        if self:
            lines += [
                f"  {'group':<16}  {'units':>8}  made by -> read by",
                *(f"  {s}" for s in self),
            ]
        if not self.skipped:
            return "\n".join(lines)
        # A module may move as a reader of one hidden space and be skipped as a maker of another.
        moved = {path for symmetry in self for path in symmetry.modules}
        rows = [
            (f"output of {skipped.module}", skipped.reason.removeprefix("its output "))
            if skipped.module in moved
            else (skipped.module or "(the model)", skipped.reason)
            for skipped in self.skipped
        ]
        width = max(len(name) for name, _ in [("left alone", ""), *rows])
        lines += [f"{'left alone':<{width}}    why"]
        return "\n".join([*lines, *(f"  {name:<{width}}  {why}" for name, why in rows)])

    __repr__ = __str__
