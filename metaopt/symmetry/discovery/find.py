"""``symmetries(model)``: what all traces of a model agree on and nothing stands against."""

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
    """The model, and what is within wrappers that leave what it computes; the innermost is last."""
    found = [model]
    while True:
        model = found[-1]
        is_parallel = isinstance(model, DataParallel | DistributedDataParallel)
        inner = getattr(model, "module" if is_parallel else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return found
        found.append(inner)


def plain(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` or data parallelism wrapped, or the model itself."""
    return wrappers(model)[-1]


def symmetries(model: nn.Module, example: Any = None, permutations: bool = False) -> Symmetries:
    """The symmetries of a model that need no data: elements of these groups leave its outputs.

    Which module feeds which is known from ``torch.fx`` traces in training and in evaluation mode;
    what they do not show, and what is shared, frozen, hooked or unknown, is left alone and listed
    in ``skipped`` with the reason. The model stays as it is.

    Args:
        model: any module.
        example: inputs (a tensor, a tuple of arguments or a mapping of keyword arguments) on which
            each symmetry is tried on the model, in both modes; those that change the outputs are
            skipped, and the model is put back, to the bit. Wanted where a symmetry is printed with
            an ``[if ...]``: what that says of inputs, or of code that no trace shows, is then
            decided, for inputs like these, and no longer printed, unless the outputs on the example
            do not depend on the units. That ``forward`` is called without its optional arguments
            stays an assumption: an example is one call.
        permutations: list permutations of hidden units too, which move nothing beyond labels.

    Returns:
        A list to print and to edit; see ``Symmetry`` and ``teleport``.
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
    """What may read weights of a model beside their layers, in one line; None if nothing does.

    Args:
        model: of whose layers alone something is known.
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
    """What an example leaves of symmetries, and of what they assume of inputs."""
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
    """What every trace shows that has anything to do with the modules concerned."""
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
    """A symmetry that rests on one assumption more."""
    return replace(symmetry, assumes=" and ".join(filter(None, [symmetry.assumes, more])))


def _without_calls(model: nn.Module, seen: list[Trace]) -> list[Skipped]:
    """Modules with parameters of their own that no trace shows as a call."""
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
