"""Notices what code does with real tensors while it is traced, which no trace shows.

Symbolic tracing runs the model's code on stand-ins. What the code computes with real tensors, such
as those of ``self.parameters()``, is computed at once and becomes a constant of the trace.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, NoReturn

from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from metaopt.symmetry.discovery.memory import Owners
from metaopt.symmetry.discovery.reachable import is_foreign_name

METADATA = frozenset({
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "is_cuda",
    "is_cpu", "is_meta", "is_mps", "is_xpu", "is_sparse", "is_quantized", "itemsize", "nbytes",
    "size", "dim", "ndimension", "numel", "nelement", "element_size", "stride",
    "is_floating_point", "is_complex", "is_contiguous", "get_device", "storage_offset",
    "__len__", "__hash__"
})  # fmt: skip


class UntraceableError(ValueError):
    """The data flow of a model cannot be known; the message says why."""


class Watch(TorchFunctionMode):
    """Ends a trace whose code computes with parameters, or changes tensors, outside of it.

    Args:
        parameters: the model's parameters.
        kept: tensors that must not be changed.

    Attributes:
        refused: the reason if the trace was ended, since code of the model may catch the exception.
    """

    def __init__(self, parameters: Owners, kept: Iterable[Tensor]) -> None:
        super().__init__()
        self.parameters = parameters
        self.kept = Owners(("", tensor) for tensor in kept)
        self.refused: str | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        if not any(isinstance(leaf, fx.Proxy) for leaf in leaves):
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            self._require_harmless(func, tensors, "out" in kwargs)
        return func(*args, **kwargs)

    def refuse(self, reason: str) -> NoReturn:
        """End the trace by raising ``UntraceableError``."""
        self.refused = reason
        raise UntraceableError(reason)

    def require_no_parameters(self, tensors: Iterable[Tensor]) -> None:
        """Raise ``UntraceableError`` if a tensor is a parameter or shares the storage of one."""
        if any(self.parameters.paths(tensor) for tensor in tensors):
            self.refuse("it computes with parameters outside of the trace")

    def _require_harmless(self, func: Any, tensors: list[Tensor], has_out: bool) -> None:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = func.__self__.__name__
        if name in METADATA:
            return
        self.require_no_parameters(tensors)
        writes = has_out or name in ("__set__", "__setitem__", "__delete__")
        writes = writes or (name.endswith("_") and not name.endswith("__"))
        if writes and any(self.kept.paths(tensor) for tensor in tensors):
            self.refuse("it changes a tensor outside of the trace")


@contextmanager
def noting(ran: dict[int, CodeType]) -> Iterator[None]:
    """Collect the user's code objects that run within the context, by their ``id``."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and not is_foreign_name(str(frame.f_globals.get("__name__"))):
            ran[id(frame.f_code)] = frame.f_code

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:
            # A profiler in C, such as cProfile's, is no function, and goes on by its own word.
            sys.setprofile(None)
            before.enable()
