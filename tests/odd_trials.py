"""What is tried on an odd model: search it, move it, and compare all that it returns."""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from odd_forwards import Call, Odd
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

import metaopt
from metaopt.symmetry.discovery.flow import AS_ON_EXAMPLE
from metaopt.symmetry.groups import Symmetries, Symmetry

COARSE = 1e-3
"""What outputs of less precision may change."""
SEEDS = (0, 1, 2)
NORM = 0.7


def leaves(value: Any) -> list[Any]:
    """All that a model returned, one after the other."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    found: list[Any] = []
    for leaf in pytree.tree_leaves(value):
        inside = dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)
        found += leaves(leaf) if inside else [leaf]
    return [x.detach().clone() if isinstance(x, Tensor) else x for x in found]


def called(model: nn.Module, call: Call, training: bool) -> list[Any] | str:
    """The outputs with fixed random numbers, or the error that the model itself raises."""
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (call.args, call.kwargs))
    model.train(training)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        try:
            return leaves(model(*args, **kwargs))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            return f"{type(error).__name__}"


def change(before: list[Any] | str, after: list[Any] | str) -> float:
    """The largest relative change of an output; infinite if something else was returned."""
    if isinstance(before, str) or isinstance(after, str):
        return 0.0 if before == after else float("inf")
    if len(before) != len(after):
        return float("inf")
    return max((_change(x, y) for x, y in zip(before, after, strict=True)), default=0.0)


def _change(x: Any, y: Any) -> float:
    if isinstance(x, np.ndarray | float):
        x, y = torch.as_tensor(x), torch.as_tensor(y)
    if not isinstance(x, Tensor):
        return 0.0 if x == y else float("inf")
    if x.shape != y.shape or x.dtype != y.dtype:
        return float("inf")
    if not (x.is_floating_point() or x.is_complex()):
        return 0.0 if torch.equal(x, y) else float("inf")
    if not torch.equal(x.isfinite(), y.isfinite()):
        return float("inf")
    x, y = x[x.isfinite()], y[y.isfinite()]
    by = float((x - y).norm() / x.norm().clamp(min=1e-30))
    is_double = x.dtype in (torch.float64, torch.complex128)
    return by if is_double or by > COARSE else 0.0


def state(model: nn.Module) -> list[Any]:
    """All that a search must leave as it was, as plain values."""
    found: list[Any] = [torch.get_rng_state().tolist(), random.getstate(), torch.is_grad_enabled()]
    found += [str(np.random.get_state()), torch.get_default_dtype()]
    for path, module in model.named_modules():
        found += [path, type(module), module.training]
        if isinstance(module, torch.jit.ScriptModule):
            continue  # Its attributes are made anew each time.
        for key, value in vars(module).items():
            found += [key, id(value), _plain(value)]
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found += [path, type(tensor), tensor.requires_grad]
        if is_lazy(tensor):
            continue
        found += [tensor.data_ptr(), tensor.dtype, tensor.stride(), _plain(tensor)]
        found += [tensor.grad is None] if tensor.is_leaf else []
    return found


def _plain(value: Any) -> Any:
    """The bits of a value, as far as it can be told."""
    if is_lazy(value):
        return id(value)
    if isinstance(value, Tensor):
        return value.detach().cpu().reshape(-1).tolist() if not value.is_quantized else None
    if isinstance(value, dict):
        return [(str(k), id(v), _plain(v)) for k, v in value.items()]
    if isinstance(value, list | tuple | set):
        return [(id(v), _plain(v)) for v in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, int | float | str | bool | None) else id(value)


def searched(model: nn.Module, example: Any = None) -> tuple[Symmetries, list[str]]:
    """What is found, and what went wrong: an error, or something that is not as it was."""
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = metaopt.symmetries(model, example, permutations=True)
        except Exception as error:  # Any error at all is what this test looks for.
            return Symmetries(), [f"symmetries raised {type(error).__name__}: {error}"[:300]]
    after = state(model)
    if before == after:
        return found, []
    at = next((i for i, (x, y) in enumerate(zip(before, after, strict=False)) if x != y), -1)
    return found, [f"not as before: {str(before[max(at - 2, 0) : at + 1])[:200]}"]


def moved(model: nn.Module, chosen: Sequence[Symmetry], seed: int) -> nn.Module:
    """The model after random elements of symmetries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if chosen:
            metaopt.teleport(model, NORM, seed, symmetries=chosen)
    return model


def changed(odd: Odd, chosen: Sequence[Symmetry], calls: Iterable[Call], where: str) -> list[str]:
    """The calls in a row, before and after moves between them, that return something else."""
    found = []
    plain, other = odd.make(), odd.make()
    for seed, training in zip(SEEDS, (True, False, True), strict=True):
        moved(other, chosen, seed)
        # After it has moved, a stream in front of equal gains is another model: see ``teleport``.
        chosen = [s for s in chosen if not s.blurs]
        for i, call in enumerate(calls):
            by = change(called(plain, call, training), called(other, call, training))
            if not by < odd.tolerance:
                mode = "training" if training else "evaluation"
                found.append(f"{where}, call {i} in {mode} mode changes by {by:.1e}")
    return found[:1]


def trial(odd: Odd) -> tuple[Symmetries, list[str]]:
    """What is found on an example, and all that went wrong with it."""
    example = Call(odd.example)
    calls = [example, *odd.others]
    with_example, wrong = searched(odd.make(), odd.example)
    alone, more = searched(odd.make())
    wrong += more
    for training in (True, False):
        plain, other = odd.make(), moved(odd.make(), with_example, 0)
        by = change(called(plain, example, training), called(other, example, training))
        if not by < odd.tolerance:
            wrong.append(f"on the example itself outputs change by {by:.1e} (training={training})")
    strict = [s for s in with_example if AS_ON_EXAMPLE not in s.assumes]
    wrong += changed(odd, [s for s in strict if not s.assumes], calls, "found on the example")
    sure = [s for s in alone if not s.assumes]
    if sure != [s for s in strict if not s.assumes]:
        wrong += changed(odd, sure, calls, "found without example")
    return with_example, [*dict.fromkeys(wrong)]


def without_list(odd: Odd) -> list[str]:
    """What ``teleport(model)`` changes, which must be nothing."""
    calls = [Call(odd.example), *odd.others]
    plain, other = odd.make(), odd.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            metaopt.teleport(other, NORM)
        except Exception as error:  # Any error at all is what this test looks for.
            return [f"teleport raised {type(error).__name__}: {error}"[:300]]
    both = [(called(plain, c, t), called(other, c, t)) for t in (True, False) for c in calls]
    worst = max(change(before, after) for before, after in both)
    return (
        [] if worst < odd.tolerance else [f"teleport without a list changes outputs by {worst:.1e}"]
    )
