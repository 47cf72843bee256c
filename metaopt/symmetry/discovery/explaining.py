"""Says what was found, and why the rest was left alone, in the model's own names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from metaopt.symmetry.discovery.flow import Flow
from metaopt.symmetry.discovery.found import Found
from metaopt.symmetry.discovery.obstacles import unmoved, variant
from metaopt.symmetry.discovery.solving import Solver
from metaopt.symmetry.discovery.values import FIXED
from metaopt.symmetry.groups import Group, Skipped, Slot, Symmetry
from metaopt.symmetry.modules import tensor_at

ATTENTION = ("query", "key", "value")


def named(model: nn.Module, found: Found) -> Symmetry:
    """A symmetry with a name: the modules that make the hidden space, and those that read it."""
    return Symmetry(
        _name(model, found),
        found.group,
        found.size,
        found.incoming,
        found.outgoing,
        found.blocks,
        found.allows,
        found.assumes,
        found.blurs,
        found.free,
    )


def _name(model: nn.Module, found: Found) -> str:
    slots = (*found.incoming, *found.outgoing)
    owners = {slot.module.removesuffix(".out_proj") for slot in slots}
    if len(owners) == 1 and isinstance(model.get_submodule(*owners), nn.MultiheadAttention):
        (path,) = owners
        attention = model.get_submodule(path)
        roles = dict.fromkeys(_role(attention, slot) for slot in slots)
        return f"{path or 'attention'}: {', '.join(roles)}"
    if found.group is Group.TRANSLATION and len(slots) == 1:
        # The weight and the bias of a layer move each by a translation of its own.
        return slots[0].path
    makers = [slot for slot in found.incoming if tensor_at(model, slot.path).dim() > 1]
    if found.group is not Group.PERMUTATION or not makers:
        makers = list(found.incoming)
    sides = [
        ", ".join(dict.fromkeys(_shown(model, s) for s in side))
        for side in (makers, found.outgoing)
    ]
    return " -> ".join(filter(None, sides))


def _shown(model: nn.Module, slot: Slot) -> str:
    """A layer's path; with the tensor's name if the module has more than a layer's tensors."""
    module = model.get_submodule(slot.module)
    if isinstance(module, nn.MultiheadAttention):
        return slot.module or "attention"
    if slot.name in ("weight", "bias", "running_mean", "running_var"):
        return slot.module or "model"
    return slot.path


def _role(attention: nn.Module, slot: Slot) -> str:
    """Which part of torch's attention a slot belongs to."""
    for name, role in (("q_proj", 0), ("k_proj", 1), ("v_proj", 2), ("bias_k", 1), ("bias_v", 2)):
        if slot.name.startswith(name):
            return ATTENTION[role]
    if slot.name == "out_proj.weight" or slot.module.endswith("out_proj"):
        return "output"
    if slot.name.startswith("in_proj"):
        return ATTENTION[slot.start // int(attention.get_parameter("out_proj.weight").shape[0])]
    return "output"


def left_alone(
    model: nn.Module, seen: list[Flow], solver: Solver, found: list[Symmetry]
) -> list[Skipped]:
    """The modules whose outputs no symmetry moves, with reasons."""
    # What only changes its sign, or shifts, is told of as well: why does it not scale?
    makers = {
        slot.module
        for symmetry in found
        if symmetry.group not in (Group.SIGNS, Group.TRANSLATION)
        for slot in symmetry.incoming
    }
    equal = solver.relations.equal_gains
    streams = [
        _unequal(one.slots[0].path, tuple(gain for gain in one.blurs if gain not in equal))
        for one in solver.rotated(equal=False)
    ]
    moved = {slot.module for symmetry in found for slot in symmetry.slots}
    return list(dict.fromkeys([*_left_alone(model, seen, solver, makers, moved), *streams]))


def _unequal(path: str, gains: tuple[str, ...]) -> Skipped:
    """Why a stream is not rotated, at the module that holds all of its norms."""
    owners = [gain.split(".") for gain in gains]
    shared = 0
    while all(len(o) > shared + 1 and o[shared] == owners[0][shared] for o in owners):
        shared += 1
    more = f" and {len(gains) - 1} others" if len(gains) > 1 else ""
    reason = (
        f"the stream that '{path}' writes is not rotated: the gains '{gains[0]}'{more} are not "
        f"known to be equal"
    )
    return Skipped(".".join(owners[0][:shared]), reason)


def _left_alone(
    model: nn.Module, seen: list[Flow], solver: Solver, makers: set[str], moved: set[str]
) -> Iterator[Skipped]:
    reasons = _reasons(solver) | unmoved(model)
    parts = {path: reason for flow in seen for path, reason in flow.opaque.items()}
    known = {path for flow in seen for path in flow.parameters}
    first = {id(p): path for path, p in model.named_parameters()}
    for path, module in model.named_modules():
        if path in parts:
            yield Skipped(path, parts[path])
            continue
        kind = variant(module)
        if kind and not any(f"{m}.".startswith(f"{path}.") for m in moved):
            reason = f"{kind} of peft is no plain product of two factors: nothing in it moves"
            yield Skipped(path, reason)
        held = [p for p in module.parameters(recurse=False) if p is not None]
        # A tensor that has two names is told of under the first.
        own = [first[id(p)] for p in held]
        told = all(f"{path}." != f"{name.rpartition('.')[0]}." for name in own)
        if not own or told or path in makers or type(module) is nn.PReLU:
            continue
        if said := [reasons[name] for name in own if name in reasons]:
            yield Skipped(path, said[0])
        elif not any(name in known for name in own) and not any(
            path == p or path.startswith(f"{p}.") for p in parts
        ):
            yield Skipped(path, "forward never calls it")


def _reasons(solver: Solver) -> dict[str, str]:
    """For each tensor, why the hidden space that it makes does not move."""
    relations, of = solver.relations, solver.scales.of
    fixed = [s for s in relations.stops if s.fixed]
    order = [*fixed, *(s for s in relations.stops if not s.fixed and s.scale), *relations.mirrors]
    first = np.full(len(of), len(order))
    for i, stop in reversed([*enumerate(order)]):
        first[of[stop.labels]] = i
    read = {int(x.flat[0]) for x in relations.read if x.size}
    found: dict[str, str] = {}
    for source in relations.sources:
        labels = source.labels[source.labels != FIXED]
        if not len(labels) or int(labels[0]) in read or source.path in found:
            continue
        number = int(first[of[labels]].min())
        if number < len(order):
            found[source.path] = order[number].why
        elif solver.scales.odd[labels].any():
            found[source.path] = "its weight both makes the hidden space and reads it"
    return found
