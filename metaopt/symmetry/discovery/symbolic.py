"""The flow of data through a model, from symbolic traces of its code.

A trace knows no sizes: a tensor has a shape only if it is the model's own, and a number that the
code takes from a shape is an ``Unknown``. Modules are lowered to the operations that they perform
(``discovery.lowering``); of others a trace knows that they are called.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Container, Iterator
from typing import Any

from torch import Tensor, dtype, fx, nn

from metaopt.symmetry.discovery import arguments
from metaopt.symmetry.discovery.flow import (
    AS_AT_FIRST,
    REQUIRED_ALONE,
    REVERSED,
    Call,
    Flow,
    Unknown,
    Variable,
    canonical,
    mapped,
    variables,
)
from metaopt.symmetry.discovery.lowering import Lowered
from metaopt.symmetry.discovery.lowering_attention import ALL_LOWERED
from metaopt.symmetry.discovery.memory import named_tensors
from metaopt.symmetry.discovery.names import CASTS, MODULE, REAL, function_name
from metaopt.symmetry.discovery.sharing import Sharing
from metaopt.symmetry.discovery.tracing import Trace, traces
from metaopt.symmetry.discovery.unseen import tampered
from metaopt.symmetry.discovery.watch import METADATA

SEVERAL = frozenset({"split", "chunk", "unbind", "hsplit", "vsplit", "dsplit", "meshgrid"})
"""Operations that return several tensors, as many as the code takes."""
WITH_DIM = frozenset(
    {"max", "min", "median", "mode", "kthvalue", "sort", "topk", "cummax", "cummin"}
)
"""Operations that return values and places if they are told an axis."""

map_arg: Any = fx.node.map_arg


def flows(model: nn.Module, leaves: Container[type] = ()) -> list[Flow]:
    """The flows of all traces of a model: see ``tracing.traces``.

    Args:
        model: the model; it is the same afterwards.
        leaves: classes of modules that are one call, named by the class.

    Raises:
        UntraceableError: if the model cannot be traced; the message says why.
    """
    return [flow_of(model, trace, leaves) for trace in traces(model, leaves)]


def flow_of(model: nn.Module, trace: Trace, leaves: Container[type] = ()) -> Flow:
    """The flow that one trace shows."""
    return _Reader(model, trace, leaves).flow()


class _Reader:
    """Reads the graph of a trace, node by node."""

    def __init__(self, model: nn.Module, trace: Trace, leaves: Container[type]) -> None:
        self.model = model
        self.trace = trace
        self.leaves = leaves
        self.calls: list[Call] = []
        self.opaque: dict[str, str] = {}
        self.parameters: dict[str, Variable] = {}
        self.sharing = Sharing(self.calls)
        named = [*model.named_parameters(), *model.named_buffers()]
        self._paths = {id(tensor): path for path, tensor in reversed(named)}
        self._of_tensors: dict[int, Variable] = {}
        self._dtypes: dict[Variable, dtype] = {}
        self._values: dict[fx.Node, Any] = {}

    def flow(self) -> Flow:
        """The flow of the whole graph."""
        outputs: list[Variable] = []
        for node in self.trace.graph.nodes:
            if node.op == "output":
                outputs = variables(self._given(node.args, ""))
            else:
                self._values[node] = self._read(node)
        outputs += self.sharing.changed(self._of_tensors.values())
        assumes = [REQUIRED_ALONE] * self.trace.partial + [AS_AT_FIRST] * self.trace.turned
        return Flow(
            self.calls,
            list(dict.fromkeys(outputs)),
            self.parameters,
            self.trace.training,
            self.trace.unseen,
            " and ".join(assumes),
            self.opaque,
        )

    def variable(self, tensor: Tensor) -> Variable:
        """The variable of a tensor that the model holds."""
        if id(tensor) not in self._of_tensors:
            shape, path = tuple(tensor.shape), self._paths.get(id(tensor), "")
            found = Variable(shape, path) if path else Variable(shape, constant=tensor)
            self._of_tensors[id(tensor)] = found
            self._dtypes[found] = tensor.dtype
            if path:
                self.parameters[path] = found
        return self._of_tensors[id(tensor)]

    def call(
        self,
        name: str | type,
        said: str,
        path: str,
        taken: Any,
        count: int = 0,
        writes: Variable | None = None,
        of: nn.Module | None = None,
    ) -> Any:
        """Write down a call.

        Args:
            name: the operation.
            said: how messages name it.
            path: the module that was running.
            taken: its arguments: a tuple and a dictionary.
            count: of the tensors that it returns in a tuple; 0 if it returns one alone.
            writes: the argument that it writes to.
            of: the module that it is.
        """
        args, kwargs = (self.sharing.current(one, path) for one in taken)
        output: Any = tuple(Variable() for _ in range(count)) if count else Variable()
        own = [] if of is None else named_tensors(of)
        held = {name: self.variable(tensor) for name, tensor in own}
        call = Call(name, args, kwargs, output, path, said, of, held)
        self.calls.append(call)
        self._note_dtype(call, output)
        if writes is None:
            self.sharing.note(call)
        else:
            self.sharing.write(writes, output)
        return output

    def _note_dtype(self, call: Call, output: Any) -> None:
        """What is made of real numbers stays real, whichever of their dtypes it has."""
        # An index may be real where what it takes from is not.
        read = call.read[:1] if call.name == "getitem" else call.read
        real = [d for v in read if (d := self._dtypes.get(v)) is not None and d.is_floating_point]
        if call.name in REAL and real and "dtype" not in call.kwargs:
            self._dtypes.update((one, real[0]) for one in variables(output))

    def unknown_module(self, module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        """A call of a module of which nothing is known but the tensors that it holds."""
        held = tuple(self.variable(tensor) for tensor in _tensors(module))
        reason = self.trace.opaque.get(path) or tampered(module)
        kind = type(module).__name__
        known = f"{kind} has no symmetry that is known here"
        self.opaque[path] = known if reason is None else reason
        if path in self.trace.opaque:
            self.opaque[path] = f"{kind} cannot be traced: {reason}"
        return self.call(MODULE, _said(module, path), path, ((*args, *held), kwargs))

    def of_module(
        self, module: nn.Module, path: str, args: Any, kwargs: Any, training: bool
    ) -> Any:
        """The calls of a module."""
        if path in self.trace.opaque or tampered(module) is not None:
            return self.unknown_module(module, path, args, kwargs)
        if type(module) in self.leaves:
            return self.call(type(module), _said(module, path), path, (args, kwargs), of=module)
        lowered: Lowered | None = ALL_LOWERED.get(type(module))
        if lowered is None or not _fits(lowered, args, kwargs):
            return self.unknown_module(module, path, args, kwargs)
        return lowered(_At(self, module, path, training), *args, **kwargs)

    def _read(self, node: fx.Node) -> Any:
        path = _path(node)
        if node.op == "placeholder":
            return Variable()
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        args, kwargs = self._given(node.args, path), self._given(node.kwargs, path)
        if node.op == "call_module":
            path = str(node.target)
            module = self.model.get_submodule(path)
            training = module.training if self.trace.training is None else self.trace.training
            return self.of_module(module, path, args, kwargs, training)
        if node.op == "call_method":
            return self._function(node, str(node.target), None, args, kwargs, path)
        name = function_name(node.target)
        return self._function(node, name, node.target, args, kwargs, path)

    def _given(self, nested: Any, path: str) -> Any:
        """Arguments with nodes replaced by their values."""
        found = map_arg(nested, lambda node: _Boxed(self._values[node]))
        return self.sharing.current(_unboxed(found), path)

    def _attribute(self, target: str) -> Any:
        found: Any = self.model
        for name in target.split("."):
            found = getattr(found, name, None)
        # Constants of the trace itself are gone when it ends.
        return self.variable(found) if isinstance(found, Tensor) else Variable()

    def _function(
        self, node: fx.Node, name: str, function: Any, args: Any, kwargs: Any, path: str
    ) -> Any:
        """A function, a method, an operator, or an attribute of a tensor."""
        given = variables((args, kwargs))
        if function is getattr:
            if not given or args[1] in METADATA:
                return self._form(args[0], str(args[1]))
            name, args = str(args[1]), args[:1]
        elif name in METADATA or function is len:
            return self._form(args[0], "len" if function is len else name, *args[1:], **kwargs)
        elif not given and function is not None and arguments.is_of_numbers(function):
            return arguments.computed(function, args, kwargs)
        elif function is operator.getitem and not isinstance(args[0], Variable):
            return arguments.item(args[0], args[1])
        writes = arguments.written(name, function, args, kwargs)
        name = canonical(name)
        if name in CASTS:
            name = arguments.cast(name, *self._with_dtypes(args, kwargs))
        if name in REVERSED and len(args) == 2:
            name, args = REVERSED[name], args[::-1]
        if name in WITH_DIM and (len(args) > 1 or "dim" in kwargs or name in ("sort", "topk")):
            count = 0 if any(isinstance(v, Variable) for v in args[1:]) else 2
        else:
            count = arguments.pieces(name, args, kwargs)
            if not count and name in SEVERAL:
                count = arguments.taken(node)
        return self.call(name, name, path, (args, kwargs), count, writes)

    def _with_dtypes(self, args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
        """Arguments of a cast, with the dtypes of tensors whose dtype is asked for."""

        def known(one: Any) -> Any:
            return self._dtypes.get(one, one) if isinstance(one, Variable) else one

        return [*args[:1], *map(known, args[1:])], {name: known(x) for name, x in kwargs.items()}

    def _form(self, thing: Any, name: str, *more: Any, **kwargs: Any) -> Any:
        """What a tensor's form says: its sizes, their number, its dtype."""
        if not isinstance(thing, Variable):
            return Unknown()
        if name == "dtype" and thing in self._dtypes:
            return self._dtypes[thing]
        shape = thing.shape
        if shape is None:
            return Unknown()
        sizes = tuple(Unknown() if size is None else size for size in shape)
        if name in ("dim", "ndim", "ndimension"):
            return len(sizes)
        if name in ("len", "__len__"):
            return sizes[0] if sizes else Unknown()
        place = kwargs.get("dim", more[0] if more else None)
        if name in ("shape", "size") and place is None:
            return sizes
        return sizes[place] if name == "size" and isinstance(place, int) else Unknown()


class _At:
    """Writes the calls of one module: a ``lowering.Writer``."""

    def __init__(self, reader: _Reader, module: nn.Module, path: str, training: bool) -> None:
        self.reader = reader
        self.module: Any = module
        self.path = path
        self.training = training

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        count = 2 if name.endswith("_with_indices") or name == "multi_head_attention_forward" else 0
        said = _said(self.module, self.path)
        writes = args[0] if kwargs.get("inplace") is True else None
        return self.reader.call(name, said, self.path, (args, kwargs), count, writes)

    def own(self, name: str) -> Any:
        found = self.module
        for part in name.split("."):
            found = getattr(found, part, None)
        return self.reader.variable(found) if isinstance(found, Tensor) else None

    def part(self, name: str, *args: Any, **kwargs: Any) -> Any:
        module = self.module.get_submodule(name)
        path = f"{self.path}.{name}" if self.path else name
        training = module.training if self.reader.trace.training is None else self.training
        return self.reader.of_module(module, path, args, kwargs, training)

    def apply(self, function: Callable[..., Any], *args: Any) -> Any:
        name = canonical(function_name(function))
        return self.reader.call(name, _said(self.module, self.path), self.path, (args, {}))


class _Boxed:
    """A value in the place of a node, since fx looks into lists and tuples."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _unboxed(nested: Any) -> Any:
    return mapped(nested, _Boxed, lambda boxed: boxed.value)


def _fits(lowered: Lowered, args: Any, kwargs: Any) -> bool:
    """Whether a module can be called with arguments, of which a trace takes any."""
    try:
        inspect.signature(lowered).bind(None, *args, **kwargs)
    except TypeError:
        return False
    return True


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _said(module: nn.Module, path: str) -> str:
    return f"{type(module).__name__} '{path}'"


def _path(node: fx.Node) -> str:
    """The path of the module whose code made a node."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""
