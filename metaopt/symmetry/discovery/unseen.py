"""What runs when a model is called and no trace shows: hooks, opaque modules, wrapped functions.

Of such code it is asked which tensors of the model it could come to (``reach``). That it reads none
of them is then an assumption, which an example may settle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
    """Whether a module is torch's own, and hence no code of the model."""
    return module.__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)


def only_observes(hook: Callable[..., Any]) -> bool:
    """The hooks of this package record what they see and change nothing."""
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith("metaopt.")


def hooks(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """The hooks on the forward pass of a module."""
    for kind in FORWARD_HOOKS:
        yield from getattr(module, kind).values()


def tampered(module: nn.Module) -> str | None:
    """Whether a module computes what its class says: a reason why not, or None."""
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    if not all(map(only_observes, hooks(module))):
        return "its forward hooks may change what it computes"
    return None


def hooks_on_all_modules() -> Iterator[Callable[..., Any]]:
    """The hooks on the forward pass of every module there is."""
    for name in FORWARD_HOOKS:
        yield from getattr(torch_module, f"_global{name}").values()


def unseen(
    model: nn.Module,
    found: list[Any],
    ran: Iterable[CodeType],
    graph: fx.Graph,
    opaque: dict[str, str],
) -> dict[str, str]:
    """What is to be assumed, by tensor, of code that was not traced and may come to it.

    Args:
        model: traced.
        found: all that its code may come to.
        ran: the user's code that the trace ran.
        graph: of the trace.
        opaque: why the modules at these paths could not be traced.
    """
    owners = Owners(named_tensors(model))
    assumed: dict[str, str] = {}

    def add(roots: list[Any], who: str, known: set[int]) -> None:
        for tensor in reachable(roots):
            if isinstance(tensor, Tensor) and id(tensor) not in known:
                for path in owners.paths(tensor):
                    assumed[path] = f"'{path}' is not read by {who}"

    for node in {node.target: node for node in graph.nodes}.values():
        if node.op == "call_module":
            path = str(node.target)
            module = model.get_submodule(path)
            of_torch = [] if path in opaque else [m for m in module.modules() if is_leaf(m)]
            known = {id(tensor) for m in of_torch for tensor in m._parameters.values()}
            add([module], f"code of '{path}'", known)
        elif node.op == "call_function" and isinstance(node.target, FunctionType):
            add([node.target], f"'{node.target.__name__}'", set())
    add([x for x in found if isinstance(x, np.ndarray)], "way of a numpy array", set())
    if (outside := _outside_of_forward(model, ran)) is not None:
        assumed |= dict.fromkeys((path for path, _ in named_tensors(model)), outside)
    return assumed


def _outside_of_forward(model: nn.Module, ran: Iterable[CodeType]) -> str | None:
    """What is to be assumed of code that is run with the model, and not, or otherwise, traced."""
    if not all(map(only_observes, hooks(model))):
        return "the model's forward hooks read no weights"
    for name in CALLS:
        if not is_foreign(model.__dict__.get(name, getattr(type(model), name))):
            return f"the model's {name} reads no weights"
    for code in filter(asks_for_tensors, ran):
        name = code.co_qualname.rpartition("<locals>.")[2]
        return f"{name}, which asks for torch.Tensor, does with one what it did in the trace"
    return None
