"""Which variables of a trace may share memory, so that a write to one changes the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from metaopt.symmetry.discovery.flow import Call, Variable, mapped
from metaopt.symmetry.discovery.names import OVERWRITTEN

VIEWS = frozenset({
    "identity", "reshape", "reshape_as", "transpose", "t", "T", "mT", "H", "mH", "adjoint",
    "permute", "movedim", "getitem", "split", "chunk", "unbind", "hsplit", "vsplit", "dsplit",
    "narrow", "select", "squeeze", "unsqueeze", "flatten", "unflatten", "ravel", "expand",
    "expand_as", "broadcast_to", "diagonal", "unfold", "real", "imag", "view_as_real",
    "view_as_complex", "dropout", "dropout1d", "dropout2d", "dropout3d", "as_strided", "cast",
    "atleast_1d", "atleast_2d", "atleast_3d", "index_select", "module",
})  # fmt: skip
"""Operations whose output may lie in the memory of their first argument."""


class Sharing:
    """Follows writes in place through a trace.

    Args:
        calls: the calls of the trace, to which calls are added that say what writes change.
    """

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self._groups: dict[Variable, set[Variable]] = {}
        self._now: dict[Variable, Variable] = {}
        self._stale: dict[Variable, list[Variable]] = {}

    def note(self, call: Call) -> None:
        """Take note of a call that has been written down.

        Args:
            call: the call; its name may tell that it writes to its first argument.
        """
        if call.name in VIEWS and call.inputs:
            group = self._group(call.inputs[0])
            for output in call.outputs:
                group.add(output)
                self._groups[output] = group

    def write(self, target: Variable, new: Variable) -> None:
        """Take note that a variable has been written to, and is another one now."""
        for origin, now in [*self._now.items()]:
            if now is target:
                self._now[origin] = new
        self._now[target] = new
        group = self._group(target)
        for other in group:
            if other is not target:
                self._stale.setdefault(other, []).append(new)
        group.discard(target)
        group.add(new)
        self._groups[new] = group
        self._stale.pop(target, None)

    def current(self, nested: Any, path: str) -> Any:
        """Arguments with each variable as it is after all writes."""
        return mapped(nested, Variable, lambda variable: self._current(variable, path))

    def changed(self, held: Iterable[Variable]) -> list[Variable]:
        """What is now in those of the model's tensors that were written to."""
        found = [self._current(variable, "") for variable in held]
        return [now for variable, now in zip(held, found, strict=True) if now is not variable]

    def _current(self, variable: Variable, path: str) -> Variable:
        variable = self._now.get(variable, variable)
        writes = self._stale.pop(variable, None)
        if not writes:
            return variable
        new = Variable(variable.shape)
        said = "writing to a part of a tensor"
        self._calls.append(Call(OVERWRITTEN, (variable, *writes), {}, new, path, said))
        group = self._group(variable)
        group.discard(variable)
        group.add(new)
        self._groups[new] = group
        for origin, now in [*self._now.items()]:
            if now is variable:
                self._now[origin] = new
        self._now[variable] = new
        return new

    def _group(self, variable: Variable) -> set[Variable]:
        return self._groups.setdefault(variable, {variable})
