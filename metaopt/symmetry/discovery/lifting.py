"""The modes in which a model runs to be recorded: without numbers, or with them.

Both take note of tensors that the code makes of lists and numpy arrays, which torch "lifts".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

TELLS = "aten::_local_scalar_dense"
LIFTS = frozenset({"aten::lift", "aten::lift_fresh", "aten::lift_fresh_copy"})


class _Notes:
    """The tensors that were lifted in a run, held so that their ``id`` stays their own."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, Any]] = {}

    def note(self, function: Any, args: Any, result: Any) -> None:
        """Take note of what an operation returned, if it lifts."""
        schema = getattr(function, "_schema", None)
        if schema is not None and schema.name in LIFTS:
            self._found[id(result)] = (result, args[0])

    def lifted_from(self, tensor: Tensor) -> Tensor | None:
        """The tensor with numbers that a tensor was lifted from, if it was."""
        found = self._found.get(id(tensor))
        return None if found is None else found[1]


class WithoutNumbers(FakeTensorMode):
    """Nothing is computed; what torch does itself for that is not recorded."""

    told: Callable[[], None]

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._notes = _Notes()
        self.lifted_from = self._notes.lifted_from

    def stand_in(self, tensor: Tensor) -> Tensor:
        """The tensor without numbers that stands for a real one."""
        return self.from_tensor(tensor, static_shapes=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            result = super().__torch_dispatch__(func, types, args, kwargs or {})
        self._notes.note(func, args, result)
        return result


class WithNumbers(TorchDispatchMode):
    """Everything is computed.

    Attributes:
        told: is called when a number of a tensor is told to code.
    """

    supports_higher_order_operators = True
    told: Callable[[], None]

    def __init__(self) -> None:
        super().__init__()
        self._notes = _Notes()
        self.lifted_from = self._notes.lifted_from

    def stand_in(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            result = func(*args, **kwargs or {})
            if getattr(func, "_schema", None) is not None and func._schema.name == TELLS:
                self.told()
        self._notes.note(func, args, result)
        return result


Lifting = WithNumbers | WithoutNumbers
