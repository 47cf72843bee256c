"""What of a rule's state belongs to which parameter.

    [1, any, P]  of entries (``Kept``)              ->  [any, *shape] for each parameter
    [1, any, L]  of parameters                      ->  [any] for each parameter
    m_i, v_i     of a hand-made update rule         ->  m, v for each parameter
    all else     (flattened rules, teleporters)     ->  kept with the first parameter

so that a state goes where its parameter goes: into another group, into a ``state_dict``, or nowhere
while the parameter has no gradient. Parts lie beside each other in the memory of the whole, so that
what is written into one is what the next step reads; no two have an entry in common.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.network import as_matrices
from metaopt.rules.base import State
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.hand_made import Adam, Momentum
from metaopt.rules.learned.unit import UnitScalingLSTM
from metaopt.teleport.optimizer_state import Kept

_ONE_EACH = re.compile(r"(?P<kind>[mv])(?P<index>\d+)")


@dataclass(frozen=True)
class _Cut:
    """A tensor of all parameters, and the parts that it was cut into."""

    whole: Tensor
    parts: tuple[Tensor, ...]
    addresses: list[int]

    def is_into(self, parts: Sequence[Tensor]) -> bool:
        """Whether it is these objects, and they still lie where the whole does.

        ``part.data = ..``, as offloading does it, leaves the object and exchanges its memory.
        """
        if any(a is not b for a, b in zip(parts, self.parts, strict=True)):
            return False
        return self.addresses == [part.data_ptr() for part in parts]


class Layout:
    """The state of all rules, cut into states of single parameters and put together again.

    Args:
        optimizer: whose rules they are.
        shapes: of the parameters, in the order of the rules.
    """

    def __init__(self, optimizer: MetaOptimizer, shapes: Sequence[torch.Size]) -> None:
        self.shapes = tuple(shapes)
        self.counts = [shape.numel() for shape in shapes]
        self._rules = dict(optimizer.rules)
        self._one_each = {n for n, r in self._rules.items() if isinstance(r, Adam | Momentum)}
        self._cuts: dict[str, _Cut] = {}

    def kept(self, key: str) -> Kept:
        """What a tensor of a rule's state, keyed ``rule.name``, belongs to."""
        rule, _, name = key.partition(".")
        return self._rules[rule].kept(name)

    def moves(self, key: str) -> Kept:
        """The same of a parameter's state, ``m`` and ``v`` of hand-made rules told apart."""
        rule, _, kind = key.partition(".")
        of_hand_made = {"m": Kept.GRADIENTS, "v": Kept.SQUARES} if rule in self._one_each else {}
        return of_hand_made.get(kind) or self.kept(key)

    def owner(self, key: str, flags: Tensor) -> int | None:
        """The first parameter with a flag in a tensor of the state; None where it is all's.

        Args:
            key: of the tensor.
            flags: booleans of its shape, at least one true.
        """
        rule, _, name = key.partition(".")
        numbered = _ONE_EACH.fullmatch(name)
        columns = self._columns(key)
        if columns is not None:
            parts = flags.split(columns[0], dim=2)
            return next(index for index, part in enumerate(parts) if bool(part.any()))
        return int(numbered["index"]) if rule in self._one_each and numbered is not None else None

    def _columns(self, key: str) -> tuple[list[int], list[torch.Size]] | None:
        """Columns of each parameter, and the shape of their parts; None where there are none."""
        match self.kept(key):
            case Kept.ALL:
                return None
            case Kept.TENSORS:
                return [1] * len(self.shapes), [torch.Size()] * len(self.shapes)
            case _:
                return self.counts, list(self.shapes)

    def apart(self, state: State) -> list[State]:
        """A state for each parameter."""
        own: list[State] = [{} for _ in self.shapes]
        for key, tensor in state.items():
            rule, _, name = key.partition(".")
            numbered = _ONE_EACH.fullmatch(name)
            columns = self._columns(key)
            if columns is not None:
                counts, shapes = columns
                parts = tuple(
                    part.reshape(-1, *shape)
                    for part, shape in zip(tensor.split(counts, dim=2), shapes, strict=True)
                )
                self._cuts[key] = _Cut(tensor, parts, [part.data_ptr() for part in parts])
                for one, part in zip(own, parts, strict=True):
                    one[key] = part
            elif rule in self._one_each and numbered is not None:
                index = int(numbered["index"])
                own[index][f"{rule}.{numbered['kind']}"] = tensor.reshape(self.shapes[index])
            else:
                own[0][key] = tensor
        return own

    def is_shared(self, key: str) -> bool:
        """Whether what a parameter's state has under this key belongs to all of them."""
        rule, _, kind = key.partition(".")
        is_own = rule in self._one_each and kind in {"m", "v"}
        return bool(kind) and not is_own and self.kept(key) is Kept.ALL

    def has(self, rule: str) -> bool:
        """Whether a rule of this name is one of those whose states are laid out."""
        return rule in self._rules

    def begins_anew(self, key: str) -> bool:
        """Whether states saved by older versions lack it."""
        rule, _, name = key.partition(".")
        return rule in self._rules and name in self._rules[rule].added_later

    def is_of_units(self, key: str) -> bool:
        """Whether it has a column for each hidden unit."""
        return isinstance(self._rules.get(rule_of(key)), UnitScalingLSTM)

    def together(self, own: Sequence[Mapping[str, Tensor]], rules: Collection[str]) -> State:
        """The state of some rules.

        Args:
            own: the state of each parameter.
            rules: their names. That of others is not read: of a teleporter that was turned off.
        """
        state: State = {}
        for key in own[0]:
            rule, _, kind = key.partition(".")
            if rule not in rules:
                continue
            columns = self._columns(key)
            if columns is not None:
                parts = tuple(one[key] for one in own)
                state[key] = self._whole(key, parts, columns[0])
            elif rule in self._one_each and kind in {"m", "v"}:
                for index, one in enumerate(own):
                    state[f"{key}{index}"] = as_matrix(one[key])
            else:
                state[key] = own[0][key]
        return state

    def _whole(self, key: str, parts: tuple[Tensor, ...], counts: Sequence[int]) -> Tensor:
        cut = self._cuts.get(key)
        # Those of the step before are still the columns of one tensor.
        if cut is not None and cut.is_into(parts):
            return cut.whole
        matrices = [p.reshape(1, -1, count) for p, count in zip(parts, counts, strict=True)]
        return torch.cat(matrices, dim=2)

    def moved(self, old: State, new: State, active: Sequence[bool]) -> State:
        """The new state for active parameters, the old one for the others."""
        if all(active):
            return new
        state = dict(new)
        for key, tensor in new.items():
            rule, _, name = key.partition(".")
            numbered = _ONE_EACH.fullmatch(name)
            columns = self._columns(key)
            if columns is not None:
                # Cut and joined: flags would have to be copied to the device, and waited for.
                both = zip(
                    tensor.split(columns[0], dim=2),
                    old[key].split(columns[0], dim=2),
                    active,
                    strict=True,
                )
                state[key] = torch.cat([own if is_on else was for own, was, is_on in both], dim=2)
            elif rule in self._one_each and numbered is not None:
                state[key] = tensor if active[int(numbered["index"])] else old[key]
        return state


def of_the_same_shapes(state: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> State:
    """A state without what begins anew: that of rules for other shapes or units than before."""
    others = misfits(state, fresh)
    return {key: value for key, value in state.items() if rule_of(key) not in others}


def misfits(state: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> set[str]:
    """The rules of which a tensor has another shape than in a fresh state."""
    return {rule_of(k) for k, v in state.items() if k in fresh and v.shape != fresh[k].shape}


def rule_of(key: str) -> str:
    """The rule that a tensor of the state is of; that of ``precision`` is of none."""
    return key.partition(".")[0]


def as_matrix(parameter: Tensor) -> Tensor:
    """[out, ..] -> [1, out, rest]: what rules see of a parameter of any shape."""
    return as_matrices(parameter[None])
