"""Records the inputs of a model's layers in the forward passes that a gradient comes from.

One hook for all modules of the process looks only at the layers it was given. So nothing is
attached to the model, and the hook is removed with its ``Recorder``. A forward pass counts from the
backward pass through it until the next step, or until the gradient is set to zero. Validation, a
pass whose gradient was thrown away, and passes within ``torch.func`` or ``torch.jit`` are not
counted; all micro-batches of one gradient are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from metaopt.base.network import LeakyReLU


@dataclass(eq=False)
class Pass:
    """One forward pass through the layers of a chain.

    Attributes:
        inputs: the inputs of the layers so far, each [.., n_l].
        expected: the input that the next layer should have, given the output of the last one.
        in_order: whether the layers were called one after the other, on inputs of fitting shapes.
        agrees: for each layer after the first a boolean on the device, true if its input came from
            the layer before it. Nothing reads them in the forward pass, which would wait for the
            device, and could not be captured as a CUDA graph.
    """

    inputs: list[Tensor] = field(default_factory=list)
    expected: Tensor | None = None
    in_order: bool = True
    agrees: list[Tensor] = field(default_factory=list)

    def add(self, position: int, x: Tensor, kept: Tensor, expected: Tensor) -> None:
        """A call of the layer at ``position``: its input, what to keep of it, what comes next."""
        if position != len(self.inputs):
            self.in_order = False
            return
        if self.expected is not None:
            if x.shape != self.expected.shape:
                self.in_order = False
                return
            # Equal up to the rounding of products in this precision.
            tolerance = max(1e-3, 8 * torch.finfo(x.dtype).eps)
            self.agrees.append((self.expected - x).norm() <= tolerance * x.norm())
        self.inputs.append(kept)
        self.expected = expected

    def is_whole(self, count: int) -> bool:
        """Whether it went through all layers, ``count`` of them, in order; waits for the device."""
        if not self.in_order or len(self.inputs) != count:
            return False
        return not self.agrees or bool(torch.stack(self.agrees).all())


class Recorder:
    """The forward passes through some layers, recorded while this object lives.

    Args:
        layers: in order.
        s: the activation between them.
        keep_graph: record inputs with their graph, for second-order meta-gradients.
    """

    def __init__(self, layers: Sequence[nn.Linear], s: LeakyReLU, keep_graph: bool) -> None:
        self._s = s
        self._count = len(layers)
        self._keep_graph = keep_graph
        self._now: Pass | None = None
        self._behind: list[Pass] = []
        self._stepped = False
        positions = {id(layer): position for position, layer in enumerate(layers)}
        hook = _hook(positions, weakref.ref(self))
        handle = register_module_forward_hook(hook, with_kwargs=True)
        weakref.finalize(self, handle.remove)

    def record(self, position: int, layer: nn.Module, x: Any, out: Any) -> None:
        """A call of the layer at ``position`` on x."""
        # A pass without gradients, such as validation, belongs to no step.
        if not isinstance(out, Tensor) or not out.requires_grad:
            return
        if position == 0 or self._now is None:
            self._forget(layer.weight)
            self._now = Pass()
        kept = x if self._keep_graph else x.detach()
        # Copied, since the caller may put other data into the same memory before the step.
        kept = kept.clone() if position == 0 else kept
        with torch.no_grad():
            self._now.add(position, x.detach(), kept, self._s(out.detach()))
        # The graph alone holds the pass until then, and lets go of it where there is no backward.
        own, through = weakref.ref(self), self._now
        out.register_hook(lambda _: _went_through(own, through))
        if position == self._count - 1:
            self._now = None

    def went_through(self, one: Pass) -> None:
        """Count a forward pass, since a backward pass goes through it."""
        if self._stepped:
            self._behind.clear()
            self._stepped = False
        if one not in self._behind:
            self._behind.append(one)

    def step(self) -> list[Pass]:
        """The passes that the gradient comes from, those on equal data once; then forget them."""
        self._stepped = True
        last: list[Pass] = []
        for one in self._behind:
            last = [other for other in last if not _same_data(one, other)] + [one]
        return last

    def _forget(self, weight: Any) -> None:
        """Before a forward pass, forget passes whose gradient has been set to zero."""
        if not self._behind or not isinstance(weight, Tensor) or not weight.is_leaf:
            return
        if weight.grad is None or not (self._stepped or bool(weight.grad.any())):
            self._behind.clear()


def _hook(positions: Mapping[int, int], recorder: weakref.ref[Recorder]) -> Any:
    def hook(
        module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> None:
        if id(module) in positions:
            x = arguments[0] if arguments else named["input"]
            record(recorder, positions[id(module)], module, x, output)

    # Not compiled, for a hook of a tensor is none of a compiled graph.
    reason = "metaopt.LearnedOptimizer sees the inputs of this layer: leave out fullgraph=True"
    record: Callable[..., None] = torch.compiler.disable(_record, reason=reason)
    return hook


def _record(
    recorder: weakref.ref[Recorder],
    position: int,
    module: nn.Module,
    x: Any,
    output: Any,
) -> None:
    own = recorder()
    # Within transforms of torch.func and traces of torch.jit tensors are no data.
    if own is None or torch._C._get_tracing_state() or torch._C._functorch.peek_interpreter_stack():
        return
    own.record(position, module, x, output)


def _went_through(recorder: weakref.ref[Recorder], one: Pass) -> None:
    own = recorder()
    if own is not None:
        own.went_through(one)


def _same_data(one: Pass, other: Pass) -> bool:
    return bool(one.inputs and other.inputs) and torch.equal(one.inputs[0], other.inputs[0])
