"""``symmetries(model)``: the symmetries that all flows of a model's data show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from metaopt.symmetry.discovery.check import Trial
from metaopt.symmetry.discovery.explaining import left_alone, named
from metaopt.symmetry.discovery.flow import LASTING, Flow
from metaopt.symmetry.discovery.memory import named_tensors
from metaopt.symmetry.discovery.obstacles import unmoved
from metaopt.symmetry.discovery.parameters import Parameters
from metaopt.symmetry.discovery.reading import Reader
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.rules.registry import modules_with_rules
from metaopt.symmetry.discovery.running import example_of, runs
from metaopt.symmetry.discovery.solving import Solver
from metaopt.symmetry.discovery.symbolic import flows as symbolic_flows
from metaopt.symmetry.discovery.tracing import traces
from metaopt.symmetry.discovery.watch import UntraceableError
from metaopt.symmetry.groups import Skipped, Symmetries, Symmetry


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
    """The symmetries of a model: f(x; g w) = f(x; w) for all inputs x and all g of a group.

    The flow of the model's data is read from symbolic traces (``torch.fx``), for all inputs at
    once. Where these do not show all of it (code that asks for sizes, as most language models do),
    it is read from a run on an example, in which nothing is computed; that the model does the same
    with other inputs is then an assumption, which is printed. Rules for operations say what each
    demands; ``metaopt.symmetry_rule`` adds rules of your own. What is known of no operation is left
    alone, with the reason, in ``skipped``.

    Args:
        model: any module.
        example: inputs of the model: a tensor, a tuple of arguments, or a mapping of keyword
            arguments. Each symmetry is tried on them, in both modes, and the model is restored bit
            for bit. A symmetry that changes the outputs is skipped. What else it assumed counts as
            checked, with three exceptions: assumptions stay if the outputs on the example do not
            depend on the hidden units, and an example, being one call, cannot check that
            ``forward`` is never called with its optional arguments, nor what it does with other
            inputs. Models of ``transformers``, with adapters of ``peft`` too, bring an example of
            their own, on which nothing is tried.
        permutations: whether to list permutations of units, streams and heads too. They only
            relabel.

    Returns:
        A list that can be printed and edited; see ``Symmetry`` and ``teleport``.
    """
    model = plain(model)
    try:
        _require_shapes(model)
        result = _searched(model, example, permutations)
    except UntraceableError as error:
        reason = f"{type(model).__name__} cannot be traced, so nothing is known: {error}"
        return Symmetries([], [Skipped("", reason)])
    if example is not None and result and not _is_meta(model):
        result = _tried(model, result, example)
    return result


def _require_shapes(model: nn.Module) -> None:
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise UntraceableError(f"'{path}' has no shape yet: call the model once")


def _is_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _searched(model: nn.Module, example: Any, permutations: bool) -> Symmetries:
    """What traces show; and where they do not show all, what a run on an example shows.

    Raises:
        UntraceableError: if neither shows anything; the message says why.
    """
    always = Symmetries()
    failed: UntraceableError | None = None
    try:
        always, whole = _read(model, symbolic_flows(model, modules_with_rules()), permutations)
        if whole:
            return always
    except UntraceableError as error:
        failed = error
    given = example_of(model) if example is None else example
    if given is None:
        if failed is None:
            return always
        raise UntraceableError(f"{failed}; give an example of its inputs") from failed
    try:
        shown, _ = _read(model, runs(model, given, modules_with_rules()), permutations)
    except UntraceableError as error:
        if failed is None:
            return always
        if example is None:
            raise UntraceableError(
                "give an example of its inputs: it does not run on the one that transformers "
                "brings for it"
            ) from error
        raise
    # What traces prove holds for all inputs, whether or not a run shows it too.
    known = {replace(symmetry, assumes=""): symmetry for symmetry in always}
    found = [known.get(replace(symmetry, assumes=""), symmetry) for symmetry in shown]
    if set(found) <= set(always) and failed is None:
        return always
    proven = [symmetry for symmetry in always if symmetry not in found]
    return Symmetries([*found, *proven], shown.skipped)


def _read(model: nn.Module, seen: list[Flow], permutations: bool) -> tuple[Symmetries, bool]:
    """The symmetries that satisfy what all flows demand, and whether all calls were clear."""
    relations = Relations()
    parameters = Parameters(relations, dict(named_tensors(model)), unmoved(model))
    reader = Reader(parameters)
    for flow in seen:
        reader.read(flow)
    solver = Solver(relations, parameters.tensors)
    of_all = [flow.assumes for flow in seen if flow.assumes]
    found = []
    for one in solver.found(permutations):
        symmetry = named(model, one)
        paths = dict.fromkeys(slot.path for slot in symmetry.slots)
        unseen = [flow.unseen[path] for path in paths for flow in seen if path in flow.unseen]
        for said in dict.fromkeys([*unseen, *of_all]):
            symmetry = _assuming(symmetry, said)
        found.append(symmetry)
    return Symmetries(found, left_alone(model, seen, solver, found)), reader.clear


def _tried(model: nn.Module, found: Symmetries, example: Any) -> Symmetries:
    """The symmetries that an example confirms, without the assumptions that it settles."""
    try:
        trial = Trial(model, example)
    except Exception as error:
        # The model's code may raise anything: in one of both modes, say.
        reason = f"it does not run on the example in training and in evaluation mode: {error}"
        return Symmetries([], [*found.skipped, Skipped("", reason.splitlines()[0])])
    changes = trial.deviations(found)
    untrue = [
        Skipped(s.modules[0], f"{s.name}: changes the outputs on the example by {change:.1e}")
        for s, change in zip(found, changes, strict=True)
        if change
    ]
    kept = [
        _settled(s, trial) if s.assumes else s
        for s, change in zip(found, changes, strict=True)
        if not change
    ]
    return Symmetries(kept, found.skipped + untrue)


def _settled(symmetry: Symmetry, trial: Trial) -> Symmetry:
    """The symmetry without what an example has settled, if it could have shown a failure."""
    lasting = [said for said in LASTING if said in symmetry.assumes]
    if symmetry.assumes == " and ".join(lasting) or not trial.would_show(symmetry):
        return symmetry
    return replace(symmetry, assumes=" and ".join(lasting))


def _assuming(symmetry: Symmetry, more: str) -> Symmetry:
    """The symmetry with one more assumption."""
    if more in symmetry.assumes:
        return symmetry
    return replace(symmetry, assumes=" and ".join(filter(None, [symmetry.assumes, more])))


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
