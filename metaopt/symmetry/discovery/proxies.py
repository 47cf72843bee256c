"""What the stand-ins for tensors do in a symbolic trace."""

from __future__ import annotations

import dis
import operator
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import fx


class Proxy(fx.Proxy):
    """fx's stand-in, for which ``x += y`` writes to x, as it does for a tensor."""


def _in_place(operation: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"):
    setattr(Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


def is_assertion(frame: FrameType) -> bool:
    """Whether a frame is evaluating the condition of an ``assert``.

    The trace takes the condition as true, since the call ends otherwise.
    """
    ahead = [i for i in dis.get_instructions(frame.f_code) if i.offset >= frame.f_lasti][:4]
    names = " ".join(f"{i.opname} {i.argrepr}" for i in ahead)
    jump, _, then = names.partition("IF_TRUE")
    return then != "" and jump.count("JUMP") == 1 and "ASSERTION" in then.upper()
