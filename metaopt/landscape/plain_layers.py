"""Per-sample gradients of plain layers from one backward pass, by hooks.

    linear, one row a sample   G_n = d_n a_n^T           a its input, d = dL_n / d output
    linear, several rows       G_n = sum_t d_nt a_nt^T
    convolution                the same over positions, a the patches that a kernel sees

A layer is plain if its weights are its own alone and it is called once, with samples on the first
axis. Nothing of that is believed: on a few samples the gradients are compared with those of
``torch.func``, and on each batch their sum with the gradient of the batch. What differs is not
returned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from metaopt.landscape.samples import Samples
from metaopt.symmetry.groups import Slot

Layer = nn.Linear | nn.Conv1d | nn.Conv2d


class Gradients(Protocol):
    """The gradients of n samples by one parameter."""

    def full(self) -> Tensor:
        """G, [n, *shape]."""

    def sum(self) -> Tensor:
        """sum_n G_n, [*shape]."""

    def along(self, slot: Slot) -> tuple[Slot, Tensor]:
        """Tensors [n, ...] with the same moments along the axis of a slot; the slot in them."""


@dataclass(frozen=True)
class Full:
    """Gradients that are held as they are.

    Attributes:
        values: G, [n, *shape].
    """

    values: Tensor

    def full(self) -> Tensor:
        """G, [n, *shape]."""
        return self.values

    def sum(self) -> Tensor:
        """sum_n G_n."""
        return self.values.sum(0)

    def along(self, slot: Slot) -> tuple[Slot, Tensor]:
        """The gradients."""
        return slot, self.values


@dataclass(frozen=True)
class Outer:
    """Gradients that are outer products, G_n = d_n a_n^T.

    Attributes:
        back: d, [n, out].
        seen: a, [n, in].
    """

    back: Tensor
    seen: Tensor

    def full(self) -> Tensor:
        """G, [n, out, in]."""
        return self.back[:, :, None] * self.seen[:, None]

    def sum(self) -> Tensor:
        """sum_n d_n a_n^T."""
        return self.back.mT @ self.seen

    def along(self, slot: Slot) -> tuple[Slot, Tensor]:
        """Thin matrices, by two identities of outer products.

        G G^T = |a|^2 d d^T, [n, out, 1] of |a| d;   G^T G = |d|^2 a a^T, [n, 1, in] of |d| a
        """
        if slot.axis == 0:
            return slot, (self.seen.norm(dim=1, keepdim=True) * self.back)[:, :, None]
        back = self.back if slot.rows is None else self.back.narrow(1, *slot.rows)
        thin = (back.norm(dim=1, keepdim=True) * self.seen)[:, None]
        return replace(slot, rows=None), thin


@dataclass
class _Call:
    """One call of a layer: what went in, and dL_n / d output, which comes later."""

    seen: Tensor | None
    back: Tensor | None = None

    def keep(self, gradient: Tensor) -> None:
        """Hook of the output."""
        self.back = gradient.detach()


class PlainLayers:
    """The plain layers of a model.

    Args:
        samples: model, loss and data.
        inputs: those of a few samples.
        targets: theirs.
        gradients: their gradients by ``torch.func``, {path: [n, *shape]}, of the parameters that
            are asked for.

    Attributes:
        thin: the parameters of which it gives outer products, which need little memory.
    """

    def __init__(
        self, samples: Samples, inputs: Any, targets: Tensor, gradients: Mapping[str, Tensor]
    ) -> None:
        self._samples = samples
        uses = Counter(id(p) for _, p in samples.model.named_parameters(remove_duplicate=False))
        self._layers = {
            f"{path}.{name}" if path else name: (layer, name)
            for path, module in samples.model.named_modules()
            for layer in _plain(module)
            for name, parameter in module.named_parameters(recurse=False)
            if uses[id(parameter)] == 1
        }
        self._layers = {path: self._layers[path] for path in gradients if path in self._layers}
        found = self.each(inputs, targets)
        self._layers = {
            path: self._layers[path]
            for path, one in found.items()
            if _agree(one.full(), gradients[path])
        }
        self.thin = {path for path in self._layers if isinstance(found[path], Outer)}

    def each(self, inputs: Any, targets: Tensor) -> dict[str, Gradients]:
        """Per-sample gradients of a batch, without those of layers that were not plain in it."""
        if not self._layers:
            return {}
        values = {
            path: v.requires_grad_() for path, v in self._samples.values(list(self._layers)).items()
        }
        with torch.enable_grad(), self._watched() as calls:
            loss = self._samples.loss(self._samples.outputs(values, inputs), targets)
            sums = torch.autograd.grad(
                len(targets) * loss, list(values.values()), allow_unused=True
            )
        found = {}
        for (path, (module, name)), wanted in zip(self._layers.items(), sums, strict=True):
            one = _gradients(module, name, calls[id(module)], len(targets))
            if one is None or wanted is None:
                continue
            if _agree(one.sum(), wanted.detach()):
                found[path] = one
        return found

    @contextmanager
    def _watched(self) -> Iterator[dict[int, list[_Call]]]:
        """The calls of each layer, by its id, while the model runs."""
        modules = {id(module): module for module, _ in self._layers.values()}
        calls: dict[int, list[_Call]] = {key: [] for key in modules}

        def watch(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            call = _Call(args[0].detach() if args else None)
            calls[id(module)].append(call)
            # A hook of the tensor, set now, has the gradient from before an in-place activation.
            output.register_hook(call.keep)

        handles = [module.register_forward_hook(watch) for module in modules.values()]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()


def _plain(module: nn.Module) -> list[Layer]:
    """The module, if it is a layer of a known kind, and no subclass, which may do anything."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        known = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return [module] if known and type(module) in (nn.Conv1d, nn.Conv2d) else []
    return [module] if isinstance(module, nn.Linear) and type(module) is nn.Linear else []


def _agree(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool(
        (found - wanted).norm() <= torch.finfo(wanted.dtype).eps ** 0.5 * wanted.norm()
    )


def _gradients(layer: Layer, name: str, calls: list[_Call], count: int) -> Gradients | None:
    """The gradients of a weight or bias, or None if the layer was not called as a plain one."""
    if len(calls) != 1:
        return None
    seen, back = calls[0].seen, calls[0].back
    if seen is None or back is None or len(seen) != count:
        return None
    if isinstance(layer, nn.Linear):
        if seen.dim() == 1:
            return None
        if seen.dim() == 2:
            return Outer(back, seen) if name == "weight" else Full(back)
        seen, back = seen.flatten(1, -2), back.flatten(1, -2)
        return Full(back.mT @ seen if name == "weight" else back.sum(1))
    if seen.dim() != layer.weight.dim():
        return None
    return Full(_of_kernel(layer, seen, back) if name == "weight" else back.flatten(2).sum(2))


def _of_kernel(layer: nn.Conv1d | nn.Conv2d, seen: Tensor, back: Tensor) -> Tensor:
    """G [n, O, I / groups, *kernel] of a convolution, from its patches."""
    if isinstance(layer, nn.Conv1d):
        seen = seen[:, :, None]
    patches = unfold(
        seen,
        _pair(layer.kernel_size, 1),
        _pair(layer.dilation, 1),
        _pair(layer.padding, 0),
        _pair(layer.stride, 1),
    ).unflatten(1, (layer.groups, -1))
    back = back.flatten(2).unflatten(1, (layer.groups, -1))
    return (back @ patches.mT).reshape(len(seen), *layer.weight.shape)


def _pair(sizes: tuple[int, ...] | str, first: int) -> tuple[int, ...]:
    """The sizes along two axes; a convolution along one has ``first`` in front."""
    assert not isinstance(sizes, str)
    return sizes if len(sizes) == 2 else (first, *sizes)
