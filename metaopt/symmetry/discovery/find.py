"""``symmetries(model)``: the symmetries that every trace of a model shows and nothing rules out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from metaopt.symmetry.discovery.check import Trial
from metaopt.symmetry.discovery.follow import Finder
from metaopt.symmetry.discovery.obstacles import Obstacles
from metaopt.symmetry.discovery.operations import MODULES
from metaopt.symmetry.discovery.tracing import Trace, traces
from metaopt.symmetry.discovery.unseen import is_leaf
from metaopt.symmetry.discovery.watch import UntraceableError
from metaopt.symmetry.groups import Skipped, Symmetries, Symmetry

REQUIRED_ALONE = "forward is called with its required arguments alone"


def wrappers(model: nn.Module) -> list[nn.Module]:
    """The model, then the model inside each wrapper (``torch.compile``, data parallel) in turn."""
    found = [model]
    while True:
        model = found[-1]
        is_parallel = isinstance(model, DataParallel | DistributedDataParallel)
        inner = getattr(model, "module" if is_parallel else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return found
        found.append(inner)


def plain(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` or data parallel wrappers, or the model itself."""
    return wrappers(model)[-1]


def symmetries(model: nn.Module, example: Any = None, permutations: bool = False) -> Symmetries:
    """The symmetries w -> g w of a model: f(x; g w) = f(x; w) for all inputs x.

    ``torch.fx`` traces of the model, in training and in evaluation mode, show which layer feeds
    which. A layer is left alone, and listed in ``skipped`` with the reason, if the traces do not
    show all that reads it, or if it is shared, frozen, hooked or unknown. The model does not
    change.

    A symmetry that is printed with ``[if ...]`` rests on an assumption that the traces cannot
    check. An example can check it.

    Args:
        model: any module.
        example: inputs of the model: a tensor, a tuple of arguments, or a mapping of keyword
            arguments. Each symmetry is tried on them, in both modes, and the model is restored bit
            for bit. A symmetry that changes the outputs is skipped. For the others the assumption
            counts as checked and is no longer printed, with two exceptions: it stays if the outputs
            on the example do not depend on the hidden units, and an example, being one call, cannot
            check that ``forward`` is never called with its optional arguments.
        permutations: whether to list permutations of hidden units too. They only relabel the units.

    Returns:
        A list that can be printed and edited; see ``Symmetry`` and ``teleport``.
    """
    model = plain(model)
    try:
        seen = traces(model)
    except UntraceableError as error:
        reason = f"{type(model).__name__} cannot be traced, so nothing is known: {error}"
        return Symmetries([], [Skipped("", reason)])
    result = _agreed(model, seen, permutations)
    result.skipped += _without_calls(model, seen)
    if example is not None and result:
        result = _tried(model, result, example)
    if any(trace.partial for trace in seen):
        return Symmetries([_assuming(s, REQUIRED_ALONE) for s in result], result.skipped)
    return result


def read_beside(model: nn.Module) -> str | None:
    """Which code of a model reads weights outside of their layers, in one line; None if none does.

    Args:
        model: the model whose layers are known.
    """
    try:
        seen = traces(model)
    except UntraceableError as error:
        return f"{type(model).__name__} cannot be traced: {error}"
    for trace in seen:
        for path, _ in model.named_parameters():
            if path in trace.read:
                return f"'{path}' is read by code of the model itself"
            if path in trace.unseen:
                return f"it is not known that {trace.unseen[path]}"
    return None


def _tried(model: nn.Module, found: Symmetries, example: Any) -> Symmetries:
    """The symmetries that an example confirms, without the assumptions that it settles."""
    trial = Trial(model, example)
    changes = trial.deviations(found)
    untrue = [
        Skipped(s.modules[0], f"{s.name}: changes the outputs on the example by {change:.1e}")
        for s, change in zip(found, changes, strict=True)
        if change
    ]
    kept = [
        replace(s, assumes="") if s.assumes and trial.would_show(s) else s
        for s, change in zip(found, changes, strict=True)
        if not change
    ]
    return Symmetries(kept, found.skipped + untrue)


def _agreed(model: nn.Module, seen: list[Trace], permutations: bool) -> Symmetries:
    """The symmetries that every trace which reaches their modules shows."""
    obstacles = Obstacles(model, seen)
    views = [list(Finder(model, trace, permutations).found()) for trace in seen]
    kept: list[Symmetry] = []
    skipped = [entry for view in views for entry in view if isinstance(entry, Skipped)]
    for symmetry in dict.fromkeys(s for view in views for s in view if isinstance(s, Symmetry)):
        is_everywhere = all(
            symmetry in view or not any(trace.reaches(path) for path in symmetry.modules)
            for trace, view in zip(seen, views, strict=True)
        )
        obstacle = obstacles.of_slots(symmetry.slots)
        if not is_everywhere:
            reason = "it is used in another way in training, in evaluation or with other arguments"
            skipped.append(Skipped(symmetry.modules[0], reason))
        elif obstacle is not None:
            skipped.append(Skipped(symmetry.modules[0], obstacle))
        else:
            kept.append(_assuming(symmetry, obstacles.open_of_slots(symmetry.slots)))
    return Symmetries(kept, dict.fromkeys(skipped))


def _assuming(symmetry: Symmetry, more: str) -> Symmetry:
    """The symmetry with one more assumption."""
    return replace(symmetry, assumes=" and ".join(filter(None, [symmetry.assumes, more])))


def _without_calls(model: nn.Module, seen: list[Trace]) -> list[Skipped]:
    """Modules that have parameters of their own and that no trace shows being called."""
    found = []
    for path, module in model.named_modules():
        has_own = any(True for _ in module.parameters(recurse=False))
        if not has_own or type(module) in MODULES:
            continue
        if not any(trace.reaches(path) for trace in seen):
            reason = "forward never calls it"
            if not is_leaf(module):
                reason = f"the parameters of {type(module).__name__} are read by code of its own"
            found.append(Skipped(path, reason))
    return found
