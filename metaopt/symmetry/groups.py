"""What a symmetry of a model is: which stretches of which parameters a group moves, and how.

    incoming stretch x -> g x,      outgoing stretch y -> g^-T y

An incoming stretch makes a hidden space (rows of W_in, entries of b_in), an outgoing one reads it
(columns of W_out): W_in -> g W_in, b_in -> g b_in, W_out -> W_out g^-1, with the group acting along
the axis of the hidden space. Gradients, and what is linear in them, move by the inverse transpose
of this: g^-T where the parameter moves by g, and g where it moves by g^-T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor


class Group(StrEnum):
    """The groups that need no data."""

    LINEAR = "general linear"
    SCALING = "positive scaling"
    PERMUTATION = "permutation"


ALL = frozenset(Group)
CHANNELWISE = frozenset({Group.SCALING, Group.PERMUTATION})
SCALES = frozenset({Group.SCALING})
RELABELS = frozenset({Group.PERMUTATION})


def largest(allows: frozenset[Group]) -> Group | None:
    """The largest continuous group allowed, or None."""
    return next((group for group in (Group.LINEAR, Group.SCALING) if group in allows), None)


@dataclass(frozen=True)
class Slot:
    """A stretch of one parameter (or buffer) along one axis, on which a group acts.

    The stretch from ``start`` is read as [outer, blocks, size, inner]: ``blocks`` elements, each of
    width ``size``, act along the third of these. A head of an attention is a block; ``inner`` are
    the positions of a channel in a flattened image, ``outer`` those of a flattened sequence.

    Attributes:
        module: path of the module; "" is the model itself.
        name: of the tensor within the module.
        axis: of the tensor, from 0.
        start: first index of the stretch.
        outer: repetitions with the stride of a whole set of blocks.
        inner: consecutive entries that belong to one unit.
        rows: (start, length) on axis 0, where only these rows read the hidden space.
        groups: of a grouped convolution that reads the hidden space, [groups O', I', ...].
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
        """Of the tensor, from the model."""
        return f"{self.module}.{self.name}" if self.module else self.name

    def apply(
        self, tensor: Tensor, blocks: int, size: int, action: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """``tensor`` with its stretch moved by ``action``, a map of [outer, blocks, size, any].

        Args:
            tensor: of the shape of the parameter.
            blocks: elements that act side by side.
            size: of each.
            action: linear in the stretch.
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
    """One group that acts on some parameters of a model and leaves its outputs as they are.

    Attributes:
        name: which modules make the hidden space and which read it.
        group: the one whose elements ``teleport`` draws.
        size: width of an element.
        incoming: stretches that move by g.
        outgoing: stretches that move by g^-T.
        blocks: elements side by side (heads), each with its own generator.
        allows: the groups that leave the outputs; ``group`` is one of them.
        assumes: what neither the trace nor an example could tell; "" where nothing is left open.

    Raises:
        ValueError: where ``group`` is none of those allowed.
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
        """All stretches."""
        return self.incoming + self.outgoing

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the modules that it moves, each once."""
        return tuple(dict.fromkeys(slot.module for slot in self.slots))

    def __str__(self) -> str:
        width = f"{self.blocks} x {self.size}" if self.blocks > 1 else str(self.size)
        assumed = f"   [if {self.assumes}]" if self.assumes else ""
        return f"{self.group:<16}  {width:>8}  {self.name}{assumed}"


@dataclass(frozen=True)
class Skipped:
    """A module that is left alone.

    Attributes:
        module: its path; "" is the model itself.
        reason: in one line.
    """

    module: str
    reason: str

    def __str__(self) -> str:
        return f"{self.module or '(the model)'}: {self.reason}"


class Symmetries(list[Symmetry]):
    """The symmetries of a model: a list to print and to edit.

    Args:
        found: what the list begins with.
        skipped: what is left alone, with reasons.
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
        # A module that reads one hidden space may make another, and that one is what is left alone.
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
