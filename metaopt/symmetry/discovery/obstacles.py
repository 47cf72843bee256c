"""Why a tensor must not be moved, whatever feeds it: sharing, hooks, or of a kind not supported."""

from __future__ import annotations

from torch import Tensor, nn

from metaopt.symmetry.discovery.memory import PLAIN, shared_memory
from metaopt.symmetry.discovery.tracing import Trace
from metaopt.symmetry.discovery.unseen import tampered
from metaopt.symmetry.groups import Slot


class Obstacles:
    """Says for which reason slots must not be moved.

    Args:
        model: the model that the slots belong to.
        traces: the traces of the model.
    """

    def __init__(self, model: nn.Module, traces: list[Trace]) -> None:
        self.model = model
        self.shared = shared_memory(model)
        self.read = frozenset().union(*(trace.read for trace in traces))
        self.places = [trace.places for trace in traces]
        self.unseen: dict[str, str] = {}
        for trace in traces:
            self.unseen |= trace.unseen

    def of_slots(self, slots: tuple[Slot, ...]) -> str | None:
        """The first reason that is found, or None."""
        reasons = (self.of_module(slot.module) or self.of_tensor(slot) for slot in slots)
        return next((reason for reason in reasons if reason is not None), None)

    def open_of_slots(self, slots: tuple[Slot, ...]) -> str:
        """What is assumed of untraced code that could read the slots; "" if nothing."""
        return next((self.unseen[slot.path] for slot in slots if slot.path in self.unseen), "")

    def of_module(self, path: str) -> str | None:
        """Why the tensors of a module must not be moved, or None."""
        module = self.model.get_submodule(path)
        if any(places[id(module)] > 1 for places in self.places):
            return f"'{path}' is used in two places"
        reason = tampered(module)
        return None if reason is None else f"'{path}': {reason}"

    def of_tensor(self, slot: Slot) -> str | None:
        """Why the tensor of a slot must not be moved, or None."""
        owner, _, name = slot.path.rpartition(".")
        module = self.model.get_submodule(owner)
        tensor: Tensor | None = module._parameters.get(name)
        if tensor is None:
            tensor = module._buffers.get(name)
            if tensor is None:
                return f"'{slot.path}' is computed from other tensors"
        elif not tensor.requires_grad:
            return f"'{slot.path}' is frozen"
        if type(tensor) not in PLAIN or not tensor.is_floating_point() or tensor.is_meta:
            return f"'{slot.path}' is no ordinary tensor of real numbers"
        if slot.path in self.shared:
            return f"'{slot.path}' shares its memory with '{self.shared[slot.path]}'"
        if slot.path in self.read:
            return f"'{slot.path}' is read by code of the model itself"
        return None
