"""Writes down every operation that a model's code calls, at the level at which it calls them.

``torch.nn.functional.layer_norm`` is one call, whatever it consists of. What a module does is
written as the calls that its ``forward`` makes.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from metaopt.symmetry.discovery.flow import REVERSED, Call, Variable, canonical
from metaopt.symmetry.discovery.known import Known, version
from metaopt.symmetry.discovery.lifting import Lifting
from metaopt.symmetry.discovery.memory import named_tensors
from metaopt.symmetry.discovery.names import CASTS, OVERWRITTEN, READS, function_name
from metaopt.symmetry.discovery.unseen import is_leaf, tampered
from metaopt.symmetry.discovery.watch import METADATA

SILENT = METADATA | frozenset({
    "is_signed", "is_sparse_csr", "is_nested", "is_mkldnn", "is_neg", "is_conj", "is_inference",
    "is_set_to", "is_same_size", "is_shared", "is_pinned", "is_quantized", "is_vulkan", "is_ipu",
    "is_xla", "is_hpu", "is_mtia", "is_maia", "names", "has_names", "name", "grad_fn",
    "retains_grad", "output_nr", "_version", "_is_view", "dim_order", "result_type", "can_cast",
    "promote_types",
    "sym_size", "sym_numel", "sym_stride", "retain_grad", "register_hook", "__dir__", "__class__",
    "is_tensor", "is_storage", "type_class", "broadcast_shapes", "_is_zerotensor", "is_distributed",
    "set requires_grad", "_backward_hooks", "set _backward_hooks", "__reduce_ex__",
    "get_default_dtype", "is_grad_enabled",
    "register_post_accumulate_grad_hook", "_has_compatible_shallow_copy_type",
})  # fmt: skip
"""What tells of a tensor its form alone, or what only a backward pass sees."""
UPDATES_STATISTICS = frozenset({"batch_norm", "instance_norm"})
"""Operations that also write to buffers, of which their rules know."""


class Recorder(TorchFunctionMode):
    """Records the calls of torch's functions.

    Args:
        model: the model that runs.
        before: the tensors that its code can reach before the run.
        mode: the mode in which it runs.
        leaves: classes of modules that are one call, with nothing inside.
    """

    def __init__(
        self,
        model: nn.Module,
        before: list[Tensor],
        mode: Lifting,
        leaves: Container[type],
    ) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._paths = {id(module): path for path, module in reversed([*model.named_modules()])}
        self._running: list[tuple[str, nn.Module]] = [("", model)]
        self._leaves = leaves
        self._is_muted = False
        self.is_inside = False
        self.known = Known(model, before, mode, self._emit)
        mode.told = self._told

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if name in SILENT:
            return func(*args, **kwargs)
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        replaced = {id(tensor): self.known.stand_in(tensor) for tensor in given}
        if self._is_muted:
            args, kwargs = _replaced((args, kwargs), replaced)
            return func(*args, **kwargs)
        taken = self._variables((args, kwargs))
        self.is_inside = True
        try:
            if name in READS and (numbers := self._numbers(given)) is not None:
                by = {id(tensor): number for tensor, number in zip(given, numbers, strict=True)}
                args, kwargs = _replaced((args, kwargs), by)
                with unset_fake_temporarily():
                    result = func(*args, **kwargs)
                written = []
            else:
                versions = {id(one): (one, version(one)) for one in replaced.values()}
                args, kwargs = _replaced((args, kwargs), replaced)
                result = func(*args, **kwargs)
                written = [one for one, before in versions.values() if version(one) != before]
        finally:
            self.is_inside = False
        self.known.look(written)
        if name in UPDATES_STATISTICS:
            written = []
        elif name == "set data":
            written = [args[0]]
        self._record(name, taken, given, written, result)
        return result

    def module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module that the model's code calls."""
        path = self._paths.get(id(module), self._running[-1][0])
        self._running.append((path, module))
        try:
            is_leaf_here = type(module) in self._leaves and tampered(module) is None
            if self._is_muted or not is_leaf_here:
                return module._call_impl(*args, **kwargs)
            return self._leaf(module, args, kwargs)
        finally:
            self._running.pop()

    def _told(self) -> None:
        """Numbers of a tensor were told to the code, by other ways than functions of torch."""
        if not (self.is_inside or self._is_muted):
            self.known.emit_unseen()

    def _leaf(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module as one call."""
        with torch._C.DisableTorchFunction():
            taken = self._variables((args, kwargs))
            held = {name: self.known.of(tensor) for name, tensor in named_tensors(module)}
            own = [*module.parameters(), *module.buffers()]
        self._is_muted = True
        try:
            result = module._call_impl(*args, **kwargs)
        finally:
            self._is_muted = False
        with torch._C.DisableTorchFunction():
            self.known.look(own)
            self._append(type(module), taken, self._results(result), module, held)
        return result

    def _record(
        self, name: str, taken: Any, given: list[Tensor], written: list[Tensor], result: Any
    ) -> None:
        """Write down a call of a function.

        Args:
            name: the function's name.
            taken: its arguments as variables.
            given: the tensors among its arguments.
            written: those among them that it has written to.
            result: what it returned.
        """
        if name not in READS:
            name = canonical(name)
        if name in CASTS:
            name = _cast(given, result)
        returned = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        given_ids = {id(self.known.stand_in(tensor)) for tensor in given}
        same = returned and all(id(self.known.stand_in(t)) in given_ids for t in returned)
        if name == "identity" and same and not written:
            return
        if not (given or returned):
            return
        args, kwargs = taken
        if name in REVERSED and len(args) == 2:
            name, args = REVERSED[name], args[::-1]
        if name == "cat" and args:
            args = _without_empty(args)
            if len(args[0]) == 1:
                name, args, kwargs = "identity", (args[0][0],), {}
        new = {id(tensor): self.known.write(tensor) for tensor in written}
        if new and not returned:
            output: Any = next(iter(new.values())) if len(new) == 1 else tuple(new.values())
        else:
            output = self._results(result, new)
        self._append(name, (args, kwargs), output)
        call = self.calls[-1]
        for variable in new.values():
            if variable not in call.outputs:
                self._emit(OVERWRITTEN, tuple(call.inputs), variable, call.said)

    def _results(self, result: Any, new: dict[int, Variable] | None = None) -> Any:
        """The variables of what a call returned; ``new`` are those of tensors written to."""
        known = new or {}
        return pytree.tree_map_only(
            Tensor, lambda t: known.get(id(t)) or self.known.meet_output(t), result
        )

    def _variables(self, nested: Any) -> Any:
        return pytree.tree_map_only(Tensor, self.known.of, nested)

    def _numbers(self, given: list[Tensor]) -> list[Tensor] | None:
        """The tensors with numbers in them, if none of them depends on the input."""
        found = [self.known.real(tensor) for tensor in given]
        return [t for t in found if t is not None] if all(t is not None for t in found) else None

    def _emit(
        self, name: str, args: tuple[Variable, ...], output: Variable | None, said: str
    ) -> None:
        self.calls.append(Call(name, args, {}, output, self._running[-1][0], said))

    def _append(
        self,
        name: str | type,
        taken: Any,
        output: Any,
        module: nn.Module | None = None,
        held: dict[str, Variable] | None = None,
    ) -> None:
        args, kwargs = taken
        path, running = self._running[-1]
        said = str(name)
        if module is not None or is_leaf(running):
            said = f"{type(running).__name__} '{path}'"
        self.calls.append(Call(name, args, kwargs, output, path, said, module, held or {}))


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Within the context all calls of this thread are recorded, and their modules known."""
    original = nn.Module.__call__
    thread = threading.get_ident()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return original(module, *args, **kwargs)
        return recorder.module(module, args, kwargs)

    kind: Any = nn.Module
    kind.__call__ = call
    try:
        with recorder:
            yield
    finally:
        kind.__call__ = original


def _cast(given: list[Tensor], result: Any) -> str:
    """``identity`` between floating dtypes, ``cast`` otherwise."""
    dtypes = {t.dtype for t in [*given[:1], result] if isinstance(t, Tensor)}
    return "identity" if len(dtypes) == 1 or all(d.is_floating_point for d in dtypes) else "cast"


def _without_empty(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of ``cat`` without tensors of shape [0], which it skips."""
    return ([v for v in args[0] if v.shape != (0,)] or args[0], *args[1:])


def _replaced(nested: Any, by: dict[int, Tensor]) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: by[id(tensor)], nested)
