"""What of the rules' states belongs to which parameter.

    [1, any, P]  of entries (``Kept``)              ->  [any, *shape] for each parameter
    [1, any, L]  of parameters                      ->  [any] for each parameter
    [1, any, F]  of sides of matrices               ->  [any, sides] for each parameter
    all else     (flattened rules, teleporters)     ->  kept with the first parameter

so that a state goes where its parameter goes: into another group, into a ``state_dict``, or nowhere
while the parameter has no gradient. There, as torch has it, tensors are named in one dictionary for
each parameter: ``rule.name``. Parts lie beside each other in the memory of the whole, so that what
is written into one is what the next step reads; no two have an entry in common.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.rules.base import Rule, State
from metaopt.rules.composed import MetaOptimizer, States, tensors_of
from metaopt.teleport.optimizer_state import Kept

_Columns = tuple[list[int], list[torch.Size]]


@dataclass(frozen=True)
class _Cut:
    """A tensor of all parameters, and the parts that it was cut into."""

    whole: Tensor
    parts: tuple[Tensor, ...]
    addresses: list[int]

    def is_into(self, parts: Sequence[Tensor]) -> bool:
        """Whether the parts are these objects, still in the memory of the whole.

        ``part.data = ..``, as offloading does it, leaves the object and exchanges its memory.
        """
        if any(a is not b for a, b in zip(parts, self.parts, strict=True)):
            return False
        return self.addresses == [part.data_ptr() for part in parts]


class StateLayout:
    """The states of all rules, cut into states of single parameters and put together again.

    Args:
        optimizer: the meta-optimizer of the rules.
        shapes: the shapes of the parameters, in the order in which rules see them.
    """

    def __init__(self, optimizer: MetaOptimizer, shapes: Sequence[torch.Size]) -> None:
        self.shapes = tuple(shapes)
        self.counts = [shape.numel() for shape in shapes]
        self._matrices = [as_matrix(torch.empty(s, device="meta")).shape[1:] for s in shapes]
        self._rules = dict(optimizer.rules)
        self._cuts: dict[str, _Cut] = {}
        self._columns_of: dict[tuple[str, str], _Columns | None] = {}

    def place(self, key: str) -> tuple[str, str] | None:
        """The rule and the name in its state that a key of a parameter's state stands for."""
        for rule in self._rules:
            if key.startswith(prefix := _key(rule, "")):
                return rule, key.removeprefix(prefix)
        return None

    def kept(self, key: str) -> Kept | None:
        """What a tensor of a parameter's state belongs to; None for what is no rule's."""
        place = self.place(key)
        return None if place is None else self._rules[place[0]].kept(place[1])

    def owner(self, rule: str, name: str, flags: Tensor) -> int | None:
        """The first parameter with a flag in a rule's tensor; None for tensors of all parameters.

        Args:
            rule: the name of the rule.
            name: the name of the tensor.
            flags: booleans of its shape, at least one true.
        """
        columns = self._columns(rule, name)
        if columns is None:
            return None
        parts = flags.split(columns[0], dim=2)
        return next(index for index, part in enumerate(parts) if bool(part.any()))

    def _columns(self, rule: str, name: str) -> _Columns | None:
        """Columns of each parameter, and the shape of their parts; None where there are none."""
        if (rule, name) not in self._columns_of:
            self._columns_of[rule, name] = self._found_columns(self._rules[rule], name)
        return self._columns_of[rule, name]

    def _found_columns(self, rule: Rule, name: str) -> _Columns | None:
        match rule.kept(name):
            case Kept.ALL:
                return None
            case Kept.TENSORS:
                return [1] * len(self.shapes), [torch.Size()] * len(self.shapes)
            case Kept.SIDES:
                sides = [rule.sides(name, matrix) for matrix in self._matrices]
                return sides, [torch.Size([count]) for count in sides]
            case _:
                return self.counts, list(self.shapes)

    def apart(self, states: States) -> list[State]:
        """A state for each parameter."""
        own: list[State] = [{} for _ in self.shapes]
        for rule, name, tensor in tensors_of(states):
            key, columns = _key(rule, name), self._columns(rule, name)
            if columns is None:
                own[0][key] = tensor
                continue
            cut = self._cuts.get(key)
            # What a step hands on as it was has been cut before.
            if cut is None or cut.whole is not tensor:
                cut = self._cuts[key] = _cut(tensor, *columns)
            for one, part in zip(own, cut.parts, strict=True):
                one[key] = part
        return own

    def is_shared(self, key: str) -> bool:
        """Whether what a parameter's state has under this key belongs to all of them."""
        return self.kept(key) is Kept.ALL

    def begins_anew(self, key: str) -> bool:
        """Whether states saved by older versions, or without what it belongs to, lack it."""
        place = self.place(key)
        if place is None:
            return False
        rule = self._rules[place[0]]
        return place[1] in rule.added_later or rule.does_without(place[1])

    def does_without(self, key: str) -> bool:
        """Whether a state goes on without it, or with one of other shapes that begins anew."""
        place = self.place(key)
        return place is not None and self._rules[place[0]].does_without(place[1])

    def is_of_units(self, key: str) -> bool:
        """Whether it has a column for each hidden unit."""
        place = self.place(key)
        return place is not None and self._rules[place[0]].columns_are_units

    def misfits(self, own: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> set[str]:
        """The rules of which a tensor has another shape than in a fresh state of a parameter."""
        others = (k for k in _others(own, fresh) if not self.does_without(k))
        places = (self.place(key) for key in others)
        return {place[0] for place in places if place is not None}

    def of_the_same_shapes(self, own: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> State:
        """A parameter's state without what begins anew: that of rules for other shapes or units."""
        others, alone = self.misfits(own, fresh), set(_others(own, fresh))
        places = {k: self.place(k) for k in own if k not in alone or not self.does_without(k)}
        return {k: own[k] for k, place in places.items() if place is None or place[0] not in others}

    def together(self, own: Sequence[Mapping[str, Tensor]], rules: Collection[str]) -> States:
        """The states of some rules.

        Args:
            own: the state of each parameter.
            rules: their names. That of others is not read: of a teleporter that was turned off.
        """
        states: States = {rule: {} for rule in rules}
        for key in own[0]:
            place = self.place(key)
            if place is None or place[0] not in rules:
                continue
            rule, name = place
            columns = self._columns(rule, name)
            if columns is None:
                states[rule][name] = own[0][key]
            else:
                parts = tuple(one[key] for one in own)
                states[rule][name] = self._whole(key, parts, columns[0])
        return states

    def _whole(self, key: str, parts: tuple[Tensor, ...], counts: Sequence[int]) -> Tensor:
        cut = self._cuts.get(key)
        # Those of the step before are still the columns of one tensor.
        if cut is not None and cut.is_into(parts):
            return cut.whole
        matrices = [p.reshape(1, p.shape[0], count) for p, count in zip(parts, counts, strict=True)]
        return torch.cat(matrices, dim=2)

    def moved(self, old: States, new: States, active: Sequence[bool]) -> States:
        """The new states for active parameters, the old ones for the others."""
        if all(active):
            return new
        states: States = {rule: {} for rule in new}
        for rule, name, tensor in tensors_of(new):
            columns = self._columns(rule, name)
            if columns is not None:
                # Cut and joined: flags would have to be copied to the device, and waited for.
                both = zip(
                    tensor.split(columns[0], dim=2),
                    old[rule][name].split(columns[0], dim=2),
                    active,
                    strict=True,
                )
                tensor = torch.cat([own if is_on else was for own, was, is_on in both], dim=2)
            states[rule][name] = tensor
        return states


def _cut(tensor: Tensor, counts: Sequence[int], shapes: Sequence[torch.Size]) -> _Cut:
    """The parts of a tensor [1, any, columns], one for each parameter."""
    if all(count == 1 for count in counts):
        parts = tensor[0].unbind(1)
        if any(shapes):
            parts = tuple(part.view(-1, *s) for part, s in zip(parts, shapes, strict=True))
    else:
        each = zip(tensor.split_with_sizes([*counts], dim=2), shapes, strict=True)
        parts = tuple(part.reshape(tensor.shape[1], *shape) for part, shape in each)
    return _Cut(tensor, parts, [part.data_ptr() for part in parts])


def _others(own: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> list[str]:
    """The keys under which the two have tensors of different shapes."""
    return [k for k, v in own.items() if k in fresh and v.shape != fresh[k].shape]


def _key(rule: str, name: str) -> str:
    """The key of a rule's tensor in the state of a parameter."""
    return f"{rule}.{name}"


def as_matrix(parameter: Tensor) -> Tensor:
    """[out, ..] -> [1, out, rest]: what rules see of a parameter of any shape."""
    return parameter.reshape(1, len(parameter) if parameter.dim() else 1, -1)
