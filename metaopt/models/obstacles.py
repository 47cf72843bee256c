"""Why a module must not be moved, whatever feeds it: sharing, hooks, frozen or foreign tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from metaopt.models.groups import Slot
from metaopt.models.tracing import Trace, tampered

PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain attributes, under all of their names."""
    for path, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers, module.__dict__):
            for name, tensor in held.items():
                if isinstance(tensor, Tensor) and type(tensor) in PLAIN:
                    yield f"{path}.{name}" if path else name, tensor


def shared_memory(model: nn.Module) -> dict[str, str]:
    """Path of each tensor that overlaps with another in memory -> path of such another."""
    spans = []
    for path, tensor in _tensors(model):
        if tensor.numel() and tensor.device.type != "meta" and tensor.layout is torch.strided:
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            spans.append((str(tensor.device), start, start + (last + 1) * tensor.itemsize, path))
    shared: dict[str, str] = {}
    device, end, owner = "", 0, ""
    for next_device, start, stop, path in sorted(spans):
        if next_device == device and start < end:
            shared[path] = owner
            shared.setdefault(owner, path)
        if next_device != device or stop > end:
            device, end, owner = next_device, stop, path
    return shared


class Obstacles:
    """Says of slots why they must stay.

    Args:
        model: whose parameters they are.
        traces: of the model.
    """

    def __init__(self, model: nn.Module, traces: list[Trace]) -> None:
        self.model = model
        self.shared = shared_memory(model)
        self.read = frozenset().union(*(trace.read for trace in traces))

    def of_slots(self, slots: tuple[Slot, ...]) -> str | None:
        """The first reason found, or None."""
        reasons = (self.of_module(slot.module) or self.of_tensor(slot) for slot in slots)
        return next((reason for reason in reasons if reason is not None), None)

    def of_module(self, path: str) -> str | None:
        """Why a module must stay as it is, or None."""
        reason = tampered(self.model.get_submodule(path))
        return None if reason is None else f"'{path}': {reason}"

    def of_tensor(self, slot: Slot) -> str | None:
        """Why the tensor of a slot must stay as it is, or None."""
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
