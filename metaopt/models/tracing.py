"""Which module feeds which: symbolic traces of a model, in every way in which it may be called.

A model is traced by ``torch.fx`` in training and in evaluation mode, with all arguments of its
``forward`` given and with the required ones alone. What holds in every trace holds for the model.
A module whose own ``forward`` cannot be traced becomes one node that nothing is known about.

Tracing runs the model's Python code on stand-ins. Its parameters are exchanged for tensors without
data meanwhile, so that a number computed from them outside of the trace is noticed, and what
``forward`` keeps on the modules is put back as it was. Code that draws random numbers of its own
may take another way the next time, and counts as not traceable.
"""

from __future__ import annotations

import dis
import inspect
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class UntraceableError(ValueError):
    """The data flow of a model cannot be known; the message says why."""


class _RetraceError(Exception):
    """A module turned out to be opaque: trace again with it as a leaf."""


@dataclass(frozen=True)
class Trace:
    """One way through a model.

    Attributes:
        graph: of calls; targets of modules are paths.
        opaque: why the modules at these paths could not be traced.
        calls: how often each module is called, by identity.
        read: paths of tensors that code of the model reads by itself.
        partial: whether optional arguments were left at their defaults, for want of a trace with
            all of them.
    """

    graph: fx.Graph
    opaque: dict[str, str]
    calls: Counter[int]
    read: frozenset[str]
    partial: bool = False

    def reaches(self, path: str) -> bool:
        """Whether a module may take part: it is called, or lies in one that is."""
        called = [str(node.target) for node in self.graph.nodes if node.op == "call_module"]
        return any(path == leaf or not leaf or path.startswith(f"{leaf}.") for leaf in called)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is torch's own, and hence no code of the model."""
    return module.__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)


def _only_observes(hook: Callable[..., Any]) -> bool:
    """The hooks of this package record what they see and change nothing."""
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith("metaopt.")


def tampered(module: nn.Module) -> str | None:
    """Whether a module computes what its class says: a reason why not, or None."""
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    hooks = [hook for kind in FORWARD_HOOKS for hook in getattr(module, kind).values()]
    if not all(_only_observes(hook) for hook in hooks):
        return "its forward hooks may change what it computes"
    return None


class _Tracer(fx.Tracer):
    """fx's tracer, with opaque modules, buffers as nodes and a choice of arguments.

    Args:
        opaque: paths of modules not to enter, with reasons; grows.
        defaults: whether optional arguments keep their defaults.
    """

    proxy_buffer_attributes = True

    def __init__(self, opaque: dict[str, str], defaults: bool) -> None:
        super().__init__()
        self.opaque = opaque
        self.defaults = defaults

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or module_qualified_name in self.opaque

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not is_leaf(m) and any(getattr(m, kind) for kind in FORWARD_HOOKS):
            # Entering it would run the hooks on stand-ins, which they may keep.
            self.opaque.setdefault(self.path_of_module(m), "it has forward hooks")
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
        if _is_assertion(sys._getframe(2)):
            return True
        return super().to_bool(obj)

    def create_arg(self, a: Any) -> Any:
        is_tensor = isinstance(a, Tensor) and not isinstance(a, nn.Parameter)
        if is_tensor and a.device.type == "meta":
            raise UntraceableError("it computes with parameters outside of the trace")
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


def _is_assertion(frame: FrameType) -> bool:
    """Whether a frame is testing the condition of an ``assert``, which holds or ends the call."""
    ahead = [i for i in dis.get_instructions(frame.f_code) if i.offset >= frame.f_lasti][:4]
    names = " ".join(f"{i.opname} {i.argrepr}" for i in ahead)
    jump, _, then = names.partition("IF_TRUE")
    return then != "" and jump.count("JUMP") == 1 and "ASSERTION" in then.upper()


def _default(parameter: inspect.Parameter, argument: Any) -> Any:
    """What a parameter of ``forward`` is if it is not given; the argument where it must be."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return ()
    if parameter.kind is parameter.VAR_KEYWORD:
        return {}
    return argument if parameter.default is parameter.empty else parameter.default


def _place(parameter: inspect.Parameter) -> int:
    """Order of the code object, in which fx passes arguments: ``*args`` after keyword-only ones."""
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


def _random_states() -> tuple[Any, ...]:
    """Of torch, Python and numpy, to compare and to restore."""
    name, words, *rest = np.random.get_state(legacy=True)
    return torch.get_rng_state().tolist(), random.getstate(), (name, tuple(words), *rest)


@contextmanager
def _as_it_was(model: nn.Module, training: bool) -> Iterator[None]:
    """All modules in one mode; afterwards they, and the random numbers, are what they were."""
    kept = {module: dict(module.__dict__) for module in model.modules()}
    draws = _random_states()
    try:
        for module in kept:
            module.training = training
        yield
        if _random_states() != draws:
            raise UntraceableError("it draws random numbers outside of the trace")
    finally:
        torch.set_rng_state(torch.tensor(draws[0], dtype=torch.uint8))
        random.setstate(draws[1])
        np.random.set_state(draws[2])
        for module, attributes in kept.items():
            module.__dict__.clear()
            module.__dict__.update(attributes)


class _Holder(nn.Module):
    """Runs the tracer where ``functional_call`` has exchanged the parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tracer: _Tracer) -> fx.Graph:
        return tracer.trace(self.model)


def _graph_of_leaf() -> fx.Graph:
    """Of a model that is one of torch's own modules: one call of "", the model itself."""
    graph = fx.Graph()
    graph.output(graph.create_node("call_module", "", (graph.placeholder("x"),)))
    return graph


def _trace_once(model: nn.Module, opaque: dict[str, str], defaults: bool) -> fx.Graph:
    parameters: dict[str, Tensor] = {
        f"model.{name}": nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for name, p in model.named_parameters()
        if not isinstance(p, nn.UninitializedParameter)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return functional_call(_Holder(model), parameters, (_Tracer(opaque, defaults),))


def _trace(model: nn.Module, training: bool, defaults: bool) -> Trace:
    """One trace; raises ``UntraceableError`` where the model's own ``forward`` has none."""
    opaque: dict[str, str] = {}
    known = -1
    # Code that catches every exception also catches the call for another trace.
    while known < len(opaque):
        known = len(opaque)
        try:
            with _as_it_was(model, training):
                graph = _trace_once(model, opaque, defaults)
        except _RetraceError:
            continue
        except Exception as error:
            raise UntraceableError(_first_line(error)) from error
    return _record(model, graph, opaque)


def _record(model: nn.Module, graph: fx.Graph, opaque: dict[str, str]) -> Trace:
    calls = Counter(
        id(model.get_submodule(str(node.target)))
        for node in graph.nodes
        if node.op == "call_module"
    )
    read = frozenset(str(node.target) for node in graph.nodes if node.op == "get_attr")
    return Trace(graph, opaque, calls, read)


def traces(model: nn.Module) -> list[Trace]:
    """The traces of a model.

    Raises:
        UntraceableError: where there is none.
    """
    if is_leaf(model):
        return [_record(model, _graph_of_leaf(), {})]
    if "forward" in model.__dict__:
        raise UntraceableError("its forward is replaced on the instance")
    signature = inspect.signature(type(model).forward).parameters.values()
    has_options = any(_default(parameter, parameter) is not parameter for parameter in signature)
    found = []
    for training in (True, False):
        trace = partial(_trace, model, training)
        found += _with_and_without_options(trace) if has_options else [trace(False)]
    return found


def _with_and_without_options(trace: Callable[[bool], Trace]) -> list[Trace]:
    """Those that there are; the one with all arguments is left out where it shows less."""
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
