"""Code that runs with a model and is not traced: hooks, opaque modules, wrapped functions.

``discovery.reachable`` tells which of the model's tensors such code could reach. That it reads none
of them is then an assumption, which an example can check.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

from metaopt.symmetry.discovery.memory import Owners, named_tensors
from metaopt.symmetry.discovery.reachable import asks_for_tensors, is_foreign, reachable

FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
CALLS = ("__call__", "_wrapped_call_impl", "_call_impl")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one of torch's own, and so contains no code of the user's."""
    return module.__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)


def only_observes(hook: Callable[..., Any]) -> bool:
    """Whether a hook belongs to this package, whose hooks only record what they see."""
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith("metaopt.")


def hooks(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """The hooks on the forward pass of a module."""
    for kind in FORWARD_HOOKS:
        yield from getattr(module, kind).values()


def tampered(module: nn.Module) -> str | None:
    """Why a module may not compute what its class defines, or None."""
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    if not all(map(only_observes, hooks(module))):
        return "its forward hooks may change what it computes"
    return None


def hooks_on_all_modules() -> Iterator[Callable[..., Any]]:
    """The hooks that torch runs on the forward pass of every module."""
    for name in FORWARD_HOOKS:
        yield from getattr(torch_module, f"_global{name}").values()


def unseen(
    model: nn.Module,
    found: list[Any],
    nowhere: Collection[int],
    ran: Iterable[CodeType],
    graph: fx.Graph,
    opaque: dict[str, str],
    leaves: Container[type] = (),
) -> dict[str, str]:
    """For each tensor that untraced code could reach, what is assumed of that code.

    Args:
        model: the model that was traced.
        found: all objects that its code can reach.
        nowhere: the ids of those among them from which it reaches no tensor.
        ran: the user's code that ran during the trace.
        graph: the graph of the trace.
        opaque: for the paths of modules that could not be traced, the reason.
        leaves: classes of modules that are one call, of whose own tensors all is known.

    Returns:
        Path of a tensor -> the assumption.
    """
    owners = Owners(named_tensors(model))
    assumed: dict[str, str] = {}

    def add(roots: list[Any], who: str, known: set[int]) -> None:
        for tensor in reachable(roots, nowhere):
            if isinstance(tensor, Tensor) and id(tensor) not in known:
                for path in owners.paths(tensor):
                    assumed[path] = f"'{path}' is not read by {who}"

    for node in {node.target: node for node in graph.nodes}.values():
        if node.op == "call_module":
            path = str(node.target)
            module = model.get_submodule(path)
            of_torch = [] if path in opaque else [m for m in module.modules() if is_leaf(m)]
            known = {id(tensor) for m in of_torch for tensor in m._parameters.values()}
            if path not in opaque and type(module) in leaves:
                known = {id(tensor) for _, tensor in named_tensors(module)}
            add([module], f"code of '{path}'", known)
        elif node.op == "call_function" and isinstance(node.target, FunctionType):
            add([node.target], f"'{node.target.__name__}'", set())
    add([x for x in found if isinstance(x, np.ndarray)], "way of a numpy array", set())
    if (outside := _outside_of_forward(model, ran)) is not None:
        assumed |= dict.fromkeys((path for path, _ in named_tensors(model)), outside)
    return assumed


def _outside_of_forward(model: nn.Module, ran: Iterable[CodeType]) -> str | None:
    """What is assumed of code that runs outside of the trace, or differently with real tensors."""
    if not all(map(only_observes, hooks(model))):
        return "the model's forward hooks read no weights"
    for name in CALLS:
        if not is_foreign(model.__dict__.get(name, getattr(type(model), name))):
            return f"the model's {name} reads no weights"
    for code in filter(asks_for_tensors, ran):
        name = code.co_qualname.rpartition("<locals>.")[2]
        return f"{name}, which asks for torch.Tensor, does with one what it did in the trace"
    return None
