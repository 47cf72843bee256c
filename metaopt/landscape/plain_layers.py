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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from metaopt.landscape.gradients import Full, Gradients, Outer
from metaopt.landscape.samples import CHECKED, Samples

Layer = nn.Linear | nn.Conv1d | nn.Conv2d


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
        whole = _norm(gradients)
        self._layers = {
            path: self._layers[path]
            for path, one in found.items()
            if _agree(one.full(), gradients[path], whole)
        }
        self.thin = {path for path in self._layers if isinstance(found[path], Outer)}

    def each(self, inputs: Any, targets: Tensor) -> dict[str, Gradients]:
        """Per-sample gradients of a batch, without those of layers that were not plain in it."""
        found: dict[str, Gradients] = {}

        def sums(outputs: Any) -> Iterable[Tensor]:
            yield len(targets) * self._samples.loss(outputs, targets)

        def take(given: dict[str, Gradients], wanted: dict[str, Tensor]) -> None:
            whole = _norm(wanted)
            found.update(
                {p: one for p, one in given.items() if _agree(one.sum(), wanted[p], whole)}
            )

        self.pull(inputs, len(targets), sums, take)
        return found

    def pull(
        self,
        inputs: Any,
        count: int,
        sums: Callable[[Any], Iterable[Tensor]],
        take: Callable[[dict[str, Gradients], dict[str, Tensor]], None],
    ) -> None:
        """Gradients of several functions of a batch's outputs, one after the other.

        Args:
            inputs: those of the batch.
            count: its samples.
            sums: outputs -> the sum over samples of each function.
            take: is given for each function the gradients of all samples, which are right if the
                layer was plain in this batch, and the gradient of their sum.
        """
        if not self._layers:
            return
        paths = list(self._layers)
        values = {path: v.requires_grad_() for path, v in self._samples.values(paths).items()}
        with torch.enable_grad(), self._watched() as calls:
            for total in sums(self._samples.outputs(values, inputs)):
                wanted = torch.autograd.grad(
                    total,
                    list(values.values()),
                    allow_unused=True,
                    materialize_grads=True,
                    retain_graph=True,
                )
                found = {
                    path: _gradients(layer, name, calls[id(layer)], count)
                    for path, (layer, name) in self._layers.items()
                }
                take(
                    {path: one for path, one in found.items() if one is not None},
                    {p: gradient.detach() for p, gradient in zip(paths, wanted, strict=True)},
                )

    @contextmanager
    def _watched(self) -> Iterator[dict[int, list[_Call]]]:
        """The calls of each layer, by its id, while the model runs."""
        modules = {id(module): module for module, _ in self._layers.values()}
        calls: dict[int, list[_Call]] = {key: [] for key in modules}

        def watch(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            call = _Call(args[0].detach() if args else None)
            calls[id(module)].append(call)
            # A hook of the tensor, set now, has the gradient from before an in-place activation.
            if output.requires_grad:
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


def _norm(gradients: Mapping[str, Tensor]) -> float:
    return sum(float(g.double().square().sum()) for g in gradients.values()) ** 0.5


def _agree(found: Tensor, wanted: Tensor, whole: float) -> bool:
    """Whether a gradient is the one that is wanted, up to rounding of the whole gradient."""
    if found.shape != wanted.shape:
        return False
    eps = torch.finfo(wanted.dtype).eps
    off = float((found - wanted).norm())
    return off <= eps**0.5 * float(wanted.norm()) or off <= 100 * eps * whole


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
            return Outer(back.double(), seen.double()) if name == "weight" else Full(back)
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


class PerSample:
    """Per-sample gradients by hooks where layers are plain, and by ``torch.func`` elsewhere.

    Args:
        samples: model, loss and data.
        paths: the parameters to differentiate by, at least one.

    Attributes:
        few: the gradients of the first few samples by ``torch.func``, {path: [n, *shape]}.
        layers: the plain layers.

    Raises:
        ValueError: if a sample has no gradient of its own.
    """

    def __init__(self, samples: Samples, paths: Sequence[str]) -> None:
        self._samples, self._paths = samples, paths
        inputs, targets = next(samples.parts(CHECKED))
        self.few = samples.each(paths, inputs, targets)
        self.layers = PlainLayers(samples, inputs, targets, self.few)

    def parts(self) -> Iterator[dict[str, Gradients]]:
        """The gradients of all samples, some at a time: few enough for memory."""
        large = [path for path in self._paths if path not in self.layers.thin]
        for inputs, targets in self._samples.parts(self._samples.fitting(large)):
            each = self.layers.each(inputs, targets)
            left = [path for path in self._paths if path not in each]
            if left:
                found = self._samples.each(left, inputs, targets)
                each |= {path: Full(gradients) for path, gradients in found.items()}
            yield each
