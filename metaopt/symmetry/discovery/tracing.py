"""Which module feeds which: symbolic traces of a model, for every way in which it may be called.

A model is traced by ``torch.fx`` in training and in evaluation mode, each with all arguments of its
``forward`` and with the required ones alone. What holds in every trace holds for the model. A
module whose own ``forward`` cannot be traced becomes one node of which nothing is known.

Tracing runs the model's Python code on stand-ins for tensors. If the code computes with parameters
outside of the trace, tracing ends (``discovery.watch``); whatever it changes is restored
(``discovery.restoring``). Code that draws its own random numbers may branch differently the next
time, and counts as not traceable. For code that is not traced, ``discovery.reachable`` tells which
parameters it could reach.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn

from metaopt.symmetry.discovery.memory import Owners, named_tensors
from metaopt.symmetry.discovery.proxies import Proxy, is_assertion
from metaopt.symmetry.discovery.reachable import MISSING, is_foreign
from metaopt.symmetry.discovery.restoring import Restoring
from metaopt.symmetry.discovery.unseen import (
    hooks,
    hooks_on_all_modules,
    is_leaf,
    only_observes,
    unseen,
)
from metaopt.symmetry.discovery.watch import UntraceableError, Watch, noting

COMPILED = "it is compiled by torch.jit"


class _RetraceError(Exception):
    """A module cannot be traced: the model has to be traced again with it as one node."""


@dataclass(frozen=True)
class Trace:
    """One trace of a model, for one way of calling it.

    Attributes:
        graph: the graph of calls; the targets of module calls are paths.
        opaque: for the paths of modules that could not be traced, the reason.
        read: the paths of tensors that code of the model reads directly.
        unseen: path of a tensor -> what is assumed of untraced code that may read it.
        partial: whether only the call with default optional arguments could be traced.
        training: the mode that it was traced in; None for that of each module.
        turned: whether the code changed numbers, flags or lists of its own, so that a later call
            may take another way.
    """

    graph: fx.Graph
    opaque: dict[str, str]
    read: frozenset[str]
    unseen: dict[str, str]
    partial: bool = False
    training: bool | None = None
    turned: bool = False


class _Tracer(fx.Tracer):
    """fx's tracer, with opaque modules, buffers as nodes, and a choice of arguments.

    Args:
        opaque: the paths of modules that are not entered, with reasons; tracing adds to it.
        defaults: whether optional arguments keep their defaults.
        watch: what watches the code's computations outside of the trace.
        leaves: classes of modules that are not entered.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        opaque: dict[str, str],
        defaults: bool,
        watch: Watch,
        leaves: Container[type],
    ) -> None:
        super().__init__()
        self.opaque = opaque
        self.leaves = leaves
        self.defaults = defaults
        self.watch = watch

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_leaf(m) or type(m) in self.leaves:
            return True
        return module_qualified_name in self.opaque

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return super().path_of_module(mod)
        except NameError:
            self.watch.refuse(f"it calls a {type(mod).__name__} that is no part of the model")

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not is_leaf(m) and any(True for _ in hooks(m)):
            # Entering it would run the hooks on stand-ins, which they may keep.
            self.opaque.setdefault(self.path_of_module(m), "it has forward hooks")
        if isinstance(m, torch.jit.ScriptModule):
            self.opaque.setdefault(self.path_of_module(m), COMPILED)
        try:
            return super().call_module(m, forward, args, kwargs)
        except _RetraceError:
            raise
        except Exception as error:
            # The model's code may raise anything when it meets a stand-in.
            path = self.path_of_module(m)
            if self.is_leaf_module(m, path):
                raise
            self.opaque[path] = _first_line(error)
            raise _RetraceError from error

    def to_bool(self, obj: fx.Proxy) -> bool:
        # The frames below: this one, that of ``Proxy.__bool__``, and the code of the model.
        if is_assertion(sys._getframe(2)):
            return True
        return self._noted(super().to_bool, obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return self._noted(super().iter, obj)

    def _noted(self, ask: Callable[[fx.Proxy], Any], obj: fx.Proxy) -> Any:
        """Ask for what depends on data; note the refusal, since code may catch the exception."""
        try:
            return ask(obj)
        except fx.proxy.TraceError as error:
            self.watch.refused = _first_line(error)
            raise

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            self.watch.require_no_parameters([a])
        return super().create_arg(a)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        function, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        if self.defaults:
            parameters = sorted(inspect.signature(root_fn).parameters.values(), key=_place)
            arguments = [
                _default(parameter, argument)
                for parameter, argument in zip(parameters, arguments, strict=True)
            ]
        return function, arguments


def _default(parameter: inspect.Parameter, argument: Any) -> Any:
    """The default of a parameter of ``forward``, or the argument if it has none."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return ()
    if parameter.kind is parameter.VAR_KEYWORD:
        return {}
    return argument if parameter.default is parameter.empty else parameter.default


def _place(parameter: inspect.Parameter) -> int:
    """The parameter's place in fx's order: ``*args`` follow keyword-only arguments."""
    order = (
        parameter.POSITIONAL_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )
    return order.index(parameter.kind)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _graph_of_leaf(model: nn.Module) -> fx.Graph:
    """The graph of a model that is not entered: one call of "", the model itself."""
    graph = fx.Graph()
    asked = inspect.signature(model.forward).parameters.values()
    required = [p for p in asked if _default(p, MISSING) is MISSING]
    graph.output(
        graph.create_node("call_module", "", tuple(graph.placeholder(p.name) for p in required))
    )
    return graph


def _trace_once(
    model: nn.Module,
    guard: Restoring,
    opaque: dict[str, str],
    training: bool | None,
    defaults: bool,
    leaves: Container[type],
) -> tuple[fx.Graph, list[CodeType], bool]:
    """The graph of one trace, the user's code that ran for it, and whether that changed state."""
    ran: dict[int, CodeType] = {}
    named = ((path, t) for path, t in named_tensors(model) if isinstance(t, nn.Parameter))
    watch = Watch(Owners(named), guard.tensors)
    try:
        guard.hide_iterators()
        for module in model.modules():
            if training is not None and "training" in module.__dict__:
                module.__dict__["training"] = training
            # Compiled by torch.compile in place: its code is traced instead.
            module.__dict__.pop("_compiled_call_impl", None)
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            if torch.get_default_device().type == "meta":
                stack.enter_context(torch.device("cpu"))
            stack.enter_context(watch)
            with noting(ran):
                for module in model.modules():
                    # The user's own ``train`` may change more than the flag.
                    if training is not None and not is_foreign(module.train):
                        module.train(training)
            before = guard.plain()
            with noting(ran):
                graph = copy_context().run(_Tracer(opaque, defaults, watch, leaves).trace, model)
            turned = guard.plain() != before
        if watch.refused is not None:
            raise UntraceableError(watch.refused)
        if guard.drew():
            raise UntraceableError("it draws random numbers outside of the trace")
        return graph, list(ran.values()), turned
    finally:
        guard.restore()


def _trace(
    model: nn.Module,
    guard: Restoring,
    leaves: Container[type],
    training: bool | None,
    defaults: bool,
) -> Trace:
    """One trace; raises ``UntraceableError`` if the model's own ``forward`` cannot be traced."""
    opaque: dict[str, str] = {}
    known = -1
    # Code that catches every exception also catches the call for another trace.
    while known < len(opaque):
        known = len(opaque)
        try:
            graph, ran, turned = _trace_once(model, guard, opaque, training, defaults, leaves)
        except _RetraceError:
            continue
        except Exception as error:
            if known < len(opaque):
                continue
            raise UntraceableError(_first_line(error)) from error
    record = _record(model, guard.found, guard.nowhere, ran, graph, opaque, leaves)
    return replace(record, training=training, turned=turned)


def _record(
    model: nn.Module,
    found: list[Any],
    nowhere: Collection[int],
    ran: list[CodeType],
    graph: fx.Graph,
    opaque: dict[str, str],
    leaves: Container[type],
) -> Trace:
    """The trace that a graph gives; for the arguments see ``unseen``."""
    read = frozenset(str(node.target) for node in graph.nodes if node.op == "get_attr")
    not_seen = unseen(model, found, nowhere, ran, graph, opaque, leaves)
    return Trace(graph, opaque, read, not_seen)


def traces(model: nn.Module, leaves: Container[type] = ()) -> list[Trace]:
    """The traces of a model: one for each mode, with and without optional arguments.

    Args:
        model: the model; it is the same afterwards.
        leaves: classes of modules that are one call, with nothing inside.

    Raises:
        UntraceableError: if the model cannot be traced; the message says why.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UntraceableError(COMPILED)
    if not all(map(only_observes, hooks_on_all_modules())):
        raise UntraceableError("forward hooks on all modules may change what it computes")
    if is_leaf(model) or type(model) in leaves:
        whole = _record(model, [], (), [], _graph_of_leaf(model), {}, leaves)
        return [replace(whole, training=training) for training in (True, False)]
    if "forward" in model.__dict__:
        raise UntraceableError("its forward is replaced on the instance")
    signature = inspect.signature(type(model).forward).parameters.values()
    has_options = any(_default(parameter, parameter) is not parameter for parameter in signature)
    found = []
    guard = Restoring(model)
    is_mixed = len({module.training for module in model.modules()}) > 1
    for training in (True, False, None) if is_mixed else (True, False):
        trace = partial(_trace, model, guard, leaves, training)
        found += _with_and_without_options(trace) if has_options else [trace(False)]
    return found


def _with_and_without_options(trace: Callable[[bool], Trace]) -> list[Trace]:
    """The traces with and without optional arguments, as far as both are possible.

    The trace with all arguments is left out if more modules are opaque in it.
    """
    found: dict[bool, Trace] = {}
    for defaults in (True, False):
        try:
            found[defaults] = trace(defaults)
        except UntraceableError as error:
            reason = error
    if not found:
        raise reason
    if True in found and (
        False not in found or not set(found[False].opaque) <= set(found[True].opaque)
    ):
        return [replace(found[True], partial=True)]
    return list(found.values())
