"""How data flows through a model: every call of an operation, with what went in and came out.

Whatever shows the flow, a symbolic trace (``discovery.symbolic``) or a run on an example
(``discovery.running``), writes it down in this one form, so that the rules for operations
(``discovery.rules``) are written once. Layers are written as the operations that they perform: a
``Linear`` is a call of ``linear`` on its input, its weight and its bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

AS_ON_EXAMPLE = "its forward does with other inputs what it did with the example"
REQUIRED_ALONE = "forward is called with its required arguments alone"
AS_AT_FIRST = "its forward does in later calls what it did in the first"
LASTING = (AS_ON_EXAMPLE, REQUIRED_ALONE, AS_AT_FIRST)
"""What flows assume and one example, being one call, cannot settle."""


@dataclass(frozen=True, eq=False)
class Variable:
    """A tensor that flows through a model, at one moment: a write in place makes another.

    Attributes:
        shape: its sizes, None where a size is unknown; None if not even their number is known.
        path: the path of the parameter or buffer that it is; "" for all others.
        constant: the tensor itself if it is neither the model's nor computed from anything, such
            as a table that the code keeps.
    """

    shape: tuple[int | None, ...] | None = None
    path: str = ""
    constant: Tensor | None = None


class Unknown:
    """A number that the flow does not show, such as the size of a batch that is not known yet."""

    def __repr__(self) -> str:
        return "?"


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation.

    Attributes:
        name: the operation, under the one name of ``NAMES``: ``add`` for ``x + y``, ``x += y``,
            ``torch.add`` and ``x.add_``. Of a module with a rule of its own: its class.
        args: the positional arguments, with ``Variable`` where tensors stood, nested as they were.
            A number that is not known is an ``Unknown``.
        kwargs: the keyword arguments, likewise.
        output: what it returned, likewise.
        module: the path of the innermost module that was running; "" is the model itself.
        said: how messages name the operation: ``ReLU '1'`` for a module, else its name.
        of: the module that it is, if a whole module is one call; else None.
        held: the parameters and buffers of that module, by their names in it.
    """

    name: str | type
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    module: str
    said: str
    of: Any = None
    held: dict[str, Variable] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Variable]:
        """The tensors among the arguments, in order, each as often as it stands there."""
        return variables((self.args, self.kwargs))

    @property
    def read(self) -> list[Variable]:
        """The tensors among the arguments, and those that the module holds."""
        return [*self.inputs, *self.held.values()]

    @property
    def outputs(self) -> list[Variable]:
        """The tensors that it returned, in order."""
        return variables(self.output)


@dataclass(frozen=True, eq=False)
class Flow:
    """All calls of one pass through a model, in order.

    Attributes:
        calls: the calls.
        outputs: the tensors that leave the model.
        parameters: path -> variable of the parameters and buffers that were used; of those with
            several paths, the first.
        training: whether the model was in training mode; None if its modules were in both.
        unseen: path of a tensor -> what is assumed of code that the flow does not show.
        assumes: what is assumed of the whole flow; "" if nothing.
        opaque: path of a module that is one call -> why nothing is known of it.
    """

    calls: list[Call]
    outputs: list[Variable]
    parameters: dict[str, Variable] = field(default_factory=dict)
    training: bool | None = None
    unseen: dict[str, str] = field(default_factory=dict)
    assumes: str = ""
    opaque: dict[str, str] = field(default_factory=dict)

    def users(self) -> dict[Variable, list[Call]]:
        """For each variable the calls that take it, each once."""
        found: dict[Variable, list[Call]] = {}
        for call in self.calls:
            for variable in dict.fromkeys(call.inputs):
                found.setdefault(variable, []).append(call)
        return found


def variables(nested: Any) -> list[Variable]:
    """The variables in nested tuples, lists and dictionaries, in order."""
    return list(_variables(nested))


def _variables(nested: Any) -> Iterator[Variable]:
    if isinstance(nested, Variable):
        yield nested
    elif isinstance(nested, slice):
        yield from _variables((nested.start, nested.stop, nested.step))
    elif isinstance(nested, dict):
        for value in nested.values():
            yield from _variables(value)
    elif isinstance(nested, tuple | list):
        for value in nested:
            yield from _variables(value)


def mapped(nested: Any, kinds: type | tuple[type, ...], function: Any) -> Any:
    """Nested tuples, lists and dictionaries with ``function`` applied to what is of a kind."""
    return pytree.tree_map_only(kinds, function, nested)


NAMES = {
    "iadd": "add", "radd": "add", "isub": "sub", "imul": "mul", "rmul": "mul", "multiply": "mul",
    "truediv": "div", "itruediv": "div", "divide": "div", "true_divide": "div", "subtract": "sub",
    "ipow": "pow", "negative": "neg", "absolute": "abs", "imatmul": "matmul",
    "mm": "matmul", "bmm": "matmul", "view": "reshape", "view_as": "reshape_as",
    "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim", "concat": "cat",
    "concatenate": "cat", "split_with_sizes": "split", "clip": "clamp",
    "_softmax": "softmax", "special_softmax": "softmax",
    "contiguous": "identity", "clone": "identity", "detach": "identity", "data": "identity",
    "alias": "identity", "requires_grad": "identity", "cuda": "identity", "cpu": "identity",
}  # fmt: skip
"""Other names of an operation -> the one that rules know it by.

What changes the dtype (``to``, ``float``, ``type_as``) is ``identity`` between floating dtypes and
``cast`` otherwise.
"""
REVERSED = {"rsub": "sub", "rtruediv": "div", "rdiv": "div", "rpow": "pow", "rmatmul": "matmul"}
"""Operators that take their operands in the other order -> the operation on swapped operands."""


def canonical(name: str) -> str:
    """The one name of an operation: without underscores of operators and of writing in place.

    Args:
        name: the name of a function, of a method, or of an operator such as ``__iadd__``.
    """
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    elif name.endswith("_") and not name.startswith("_"):
        name = name[:-1]
    return NAMES.get(name, name)
