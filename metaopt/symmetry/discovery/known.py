"""Which variable of a flow each tensor is, while a model runs.

A tensor is known by its identity. One that nobody has seen before is the model's (a parameter or
buffer), or was there before the run (a constant), or came out of code that the run does not show.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from metaopt.symmetry.discovery.flow import Variable
from metaopt.symmetry.discovery.lifting import Lifting
from metaopt.symmetry.discovery.names import OVERWRITTEN, READ_ELSEWHERE, UNSEEN

Emit = Callable[[str, tuple[Variable, ...], Variable | None, str], None]
"""(operation, arguments, output, how messages name it): writes a call down."""


@dataclass(eq=False)
class Entry:
    """What is known of one tensor.

    Attributes:
        tensor: the tensor, held so that its ``id`` and its storage stay its own.
        stand_in: what is computed with in its place, held likewise.
        variable: the variable that it is now.
        before: whether it was there before the run, or is an input.
        written: whether it has been written to.
        overwritten: the writes through other tensors with its storage that have not been read yet.
        versions: how often it and its stand-in had been written to when last seen.
    """

    tensor: Tensor
    stand_in: Tensor
    variable: Variable
    before: bool = False
    written: bool = False
    overwritten: list[tuple[Tensor, Variable]] = field(default_factory=list)
    versions: tuple[int, int] = (0, 0)

    def look(self) -> None:
        """Take note of how often it has been written to."""
        self.versions = version(self.tensor), version(self.stand_in)

    @property
    def is_changed(self) -> bool:
        """Whether it has been written to since the last look."""
        return self.versions != (version(self.tensor), version(self.stand_in))


class Known:
    """Finds the variable of each tensor.

    Args:
        model: the model that runs.
        before: the tensors that its code can reach before the run.
        mode: the mode in which it runs.
        emit: writes a call down.
    """

    def __init__(self, model: nn.Module, before: list[Tensor], mode: Lifting, emit: Emit) -> None:
        self._mode = mode
        self._emit = emit
        named = [*model.named_parameters(), *model.named_buffers()]
        self._named = {id(tensor): (path, tensor) for path, tensor in reversed(named)}
        self._before = {id(tensor): tensor for tensor in before}
        self._versions = {id(tensor): version(tensor) for tensor in before}
        self._spans = Spans(self._named.values())
        self._entries: dict[int, Entry] = {}
        self._by_storage: dict[int, dict[Entry, None]] = {}
        self._hidden: list[Variable] = []
        self.inputs: list[Variable] = []
        self.parameters: dict[str, Variable] = {}
        for tensor in before:
            if id(tensor) not in self._named:
                self.read_elsewhere(tensor, "a tensor that shares its memory")

    def read_elsewhere(self, tensor: Any, by: str) -> None:
        """Note that what shares its memory with parameters, and is none, may be read anywhere."""
        for path, named in self._spans.overlapping(tensor):
            if named is not tensor:
                self._emit(READ_ELSEWHERE, (self.of(named),), None, f"{by} with '{path}'")

    def of(self, tensor: Tensor) -> Variable:
        """The variable that a tensor is now; calls that explain where it comes from are emitted."""
        entry = self._entries.get(id(tensor)) or self._meet(tensor)
        if entry.is_changed or (entry.before and self._is_changed_beside(entry)):
            self._changed_unseen(entry)
        elif entry.overwritten:
            self._read_again(entry)
        return entry.variable

    def look(self, tensors: Iterable[Tensor]) -> None:
        """Take note that a call has written to tensors, and to all that share their storage."""
        for tensor in tensors:
            for entry in self._sharing(tensor):
                entry.look()

    def emit_unseen(self) -> None:
        """Write down that code which the run does not show has read numbers."""
        self._emit(UNSEEN, self._everything(), None, "code that the run does not show")

    def stand_in(self, tensor: Tensor) -> Tensor:
        """The tensor to compute with: in a run without computation, the fake one."""
        entry = self._entries.get(id(tensor))
        return self._made_stand_in(tensor) if entry is None else entry.stand_in

    def real(self, tensor: Tensor) -> Tensor | None:
        """The tensor with numbers, if it was there before the run and is as it was."""
        entry = self._entries.get(id(tensor)) or self._meet(tensor)
        kept = entry.before and not (entry.written or entry.overwritten)
        if not kept or entry.tensor.is_meta or isinstance(entry.tensor, FakeTensor):
            return None
        return entry.tensor

    def meet_input(self, tensor: Tensor) -> None:
        """Make a tensor known as an input."""
        self.inputs.append(self._add(tensor, Variable(shape_of(tensor)), before=True).variable)

    def meet_output(self, tensor: Tensor) -> Variable:
        """Make a tensor known as what a call returns; one that is known becomes that value."""
        variable = self._new(tensor)
        entry = self._entries.get(id(tensor))
        if entry is None:
            self._add(tensor, variable, before=False)
        elif not entry.before:
            entry.variable = variable
            entry.overwritten.clear()
        return variable

    def write(self, tensor: Tensor) -> Variable:
        """The new variable of a tensor that was written to."""
        entry = self._entries[id(tensor)]
        entry.variable = self._new(tensor)
        entry.written = True
        entry.overwritten.clear()
        entry.look()
        for other in self._sharing(tensor):
            if other is not entry:
                other.look()
                other.written = True
                other.overwritten.append((tensor, entry.variable))
        return entry.variable

    def changed(self) -> list[Variable]:
        """What is now in the tensors that were there before the run and have been written to.

        Those of integers, such as counters, are left out: nothing moves in them.
        """
        known = dict.fromkeys(entry for entry in self._entries.values() if entry.before)
        entries = [entry for entry in known if entry.written or entry.is_changed]
        held = [entry.tensor for entry in entries]
        return [self.of(t) for t in held if t.is_floating_point() or t.is_complex()]

    def is_new(self, tensor: Tensor) -> bool:
        """Whether a tensor was made in the run."""
        entry = self._entries.get(id(tensor))
        if entry is not None:
            return not entry.before
        return isinstance(tensor, FakeTensor) or id(tensor) not in self._before

    def has_met(self, tensor: Tensor) -> bool:
        """Whether the run has used a tensor."""
        return id(tensor) in self._entries

    def _add(self, tensor: Tensor, variable: Variable, before: bool) -> Entry:
        entry = Entry(tensor, self._made_stand_in(tensor), variable, before)
        entry.look()
        if id(tensor) in self._versions:
            entry.versions = self._versions[id(tensor)], entry.versions[1]
        for one in (tensor, entry.stand_in):
            self._entries[id(one)] = entry
            if (storage := _storage(one)) is not None:
                self._by_storage.setdefault(storage, {})[entry] = None
        self._hidden.append(variable)
        return entry

    def _new(self, tensor: Tensor) -> Variable:
        """A new variable of a tensor, which code that the run does not show could reach."""
        variable = Variable(shape_of(tensor))
        self._hidden.append(variable)
        return variable

    def _made_stand_in(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor) or _is_wrapped(tensor):
            return tensor
        return self._mode.stand_in(tensor)

    def _sharing(self, tensor: Tensor) -> list[Entry]:
        storage = _storage(tensor)
        return [] if storage is None else list(self._by_storage.get(storage, ()))

    def _meet(self, tensor: Tensor) -> Entry:
        """Make a tensor known that no call has returned."""
        shape = shape_of(tensor)
        if id(tensor) in self._named:
            path, _ = self._named[id(tensor)]
            variable = self.parameters[path] = Variable(shape, path)
            entry = self._add(tensor, variable, before=True)
            for other, named in self._spans.overlapping(tensor):
                if named is not tensor:
                    self._emit(READ_ELSEWHERE, (variable,), None, f"'{other}' with '{path}'")
            return entry
        if id(tensor) in self._before:
            self.read_elsewhere(tensor, "a tensor that shares its memory")
            return self._add(tensor, Variable(shape, constant=tensor), before=True)
        if (lifted := self._mode.lifted_from(tensor)) is not None:
            self.read_elsewhere(lifted, "a tensor that shares its memory")
            entry = self._add(tensor, Variable(shape), before=False)
            self._emit("tensor", (), entry.variable, "tensor")
            return entry
        return self._meet_unseen(tensor)

    def _meet_unseen(self, tensor: Tensor) -> Entry:
        """A tensor that code made which the run does not show, from anything that it could reach.

        If it lies in the memory of known tensors it was made from these alone.
        """
        variable = Variable(shape_of(tensor))
        sources = self._sharing(tensor)
        overlapping = [named for _, named in self._spans.overlapping(tensor)]
        same = [entry for entry in sources if _place(entry.tensor) == _place(tensor)]
        if same and _place(tensor) is not None:
            self._emit("identity", (self.of(same[-1].tensor),), variable, "identity")
        elif sources or overlapping:
            shared = [*overlapping, *(entry.tensor for entry in sources)]
            made_from = tuple(dict.fromkeys(map(self.of, shared)))
            self._emit(UNSEEN, made_from, variable, "code that the run does not show")
        else:
            self._emit(UNSEEN, self._everything(), variable, "code that the run does not show")
        return self._add(tensor, variable, before=False)

    def _is_changed_beside(self, entry: Entry) -> bool:
        """Whether such code has written to a tensor of the model's through ``.data``."""
        return any(other.is_changed for other in self._sharing(entry.stand_in))

    def _changed_unseen(self, entry: Entry) -> None:
        """Code that the run does not show has written to a tensor."""
        for other in (entry, *self._sharing(entry.stand_in)):
            other.look()
        everything = dict.fromkeys((*self._everything(), entry.variable))
        entry.variable, entry.written = Variable(entry.variable.shape), True
        entry.overwritten.clear()
        said = "code that the run does not show"
        self._emit(UNSEEN, tuple(everything), entry.variable, said)

    def _everything(self) -> tuple[Variable, ...]:
        """The model's tensors, and all that the last such call has not had."""
        everything = dict.fromkeys(self.of(tensor) for _, tensor in self._named.values())
        everything |= dict.fromkeys(self._hidden)
        self._hidden.clear()
        return tuple(everything)

    def _read_again(self, entry: Entry) -> None:
        """Say how a tensor came to its present content, which was written through others."""
        writes, entry.overwritten = entry.overwritten, []
        last, latest = writes[-1]
        old, entry.variable = entry.variable, Variable(entry.variable.shape)
        if _place(self.stand_in(entry.tensor)) == _place(self.stand_in(last)) is not None:
            self._emit("identity", (latest,), entry.variable, "identity")
        else:
            made_from = (old, *(variable for _, variable in writes))
            self._emit(OVERWRITTEN, made_from, entry.variable, "writing to a part of a tensor")


class Spans:
    """Where named tensors lie in memory.

    Args:
        named: the path and the tensor of each.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        found = [(*span, path, t) for path, t in named if (span := _span(t)) is not None]
        self._spans = sorted(found, key=lambda found: found[:3])
        self._starts = [span[:2] for span in self._spans]
        self._longest = max((stop - start for _, start, stop, *_ in self._spans), default=0)

    def overlapping(self, tensor: Any) -> list[tuple[str, Tensor]]:
        """The named tensors that overlap with a tensor or a numpy array in memory."""
        span = _span(tensor)
        if span is None:
            return []
        where, start, stop = span
        first = bisect_left(self._starts, (where, start - self._longest))
        last = bisect_left(self._starts, (where, stop))
        return [(path, t) for _, _, end, path, t in self._spans[first:last] if end > start]


def shape_of(tensor: Tensor) -> tuple[int, ...] | None:
    """The sizes of a tensor; None for nested tensors, which have none."""
    return None if tensor.is_nested else tuple(tensor.shape)


def version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 if torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _span(tensor: Any) -> tuple[str, int, int] | None:
    """Where a tensor or numpy array lies: (device, first byte, byte after the last)."""
    if not isinstance(tensor, Tensor):
        start = int(tensor.__array_interface__["data"][0])
        steps = [(n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)]
        stop = start + sum(s for s in steps if s > 0) + tensor.itemsize
        return ("cpu", start + sum(s for s in steps if s < 0), stop) if tensor.nbytes else None
    has_none = isinstance(tensor, FakeTensor) or _is_wrapped(tensor)
    storage = None if has_none else _storage(tensor)
    if storage is None or not tensor.numel():
        return None
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.is_meta:
        where, start = f"meta {storage}", int(tensor.storage_offset()) * tensor.itemsize
    else:
        where, start = str(tensor.device), tensor.data_ptr()
    return where, start, start + (last + 1) * tensor.itemsize


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    """Tensors with equal places hold the same numbers; None if it cannot be told."""
    if _is_wrapped(tensor) or _storage(tensor) is None:
        return None
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor wraps another one, within ``torch.func``."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def _storage(tensor: Tensor) -> int | None:
    """What identifies the storage of a tensor, or of the tensor that it wraps; None if unknown."""
    while _is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if tensor.layout is not torch.strided or isinstance(
        tensor, UninitializedParameter | UninitializedBuffer
    ):
        return None
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None
