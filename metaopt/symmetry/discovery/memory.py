"""Which tensors of a model share memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and tensors in plain attributes, under every name within their module.

    A module that has several paths appears under the first.
    """
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers, module.__dict__):
            for name, tensor in held.items():
                if isinstance(tensor, Tensor) and type(tensor) in PLAIN:
                    yield f"{path}.{name}" if path else name, tensor


def shared_memory(model: nn.Module) -> dict[str, str]:
    """For each tensor that overlaps with another in memory: its path -> the path of the other."""
    spans = []
    for path, tensor in named_tensors(model):
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


class Owners:
    """Finds which of some named tensors another tensor is, or shares its storage with.

    Args:
        named: the path and the tensor of each.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self._paths: dict[int | tuple[str, int], list[str]] = {}
        for path, tensor in named:
            for key in (id(tensor), _storage(tensor)):
                if key is not None:
                    self._paths.setdefault(key, []).append(path)

    def paths(self, tensor: Tensor) -> list[str]:
        """The paths of the named tensors that may change if ``tensor`` is written to."""
        own = self._paths.get(id(tensor))
        if own is not None:
            return own
        key = _storage(tensor)
        return [] if key is None else self._paths.get(key, [])


def _storage(tensor: Tensor) -> tuple[str, int] | None:
    """The device and address of a tensor's storage; None if it has none."""
    if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.is_meta:
        return None
    start = tensor.untyped_storage().data_ptr()
    return (str(tensor.device), start) if start else None
