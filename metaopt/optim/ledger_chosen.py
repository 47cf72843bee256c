"""Which symmetries a ledger follows: those whose charges the training of a model can keep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from metaopt.symmetry.conserved import named, parameters_of
from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.groups import Skipped, Symmetries, Symmetry
from metaopt.symmetry.modules import tensor_at


def followed(
    model: nn.Module, optimizer: Optimizer, given: Iterable[Symmetry] | None, example: Any
) -> tuple[dict[str, Symmetry], list[Skipped]]:
    """The symmetries with charges of whose parameters all are trained, by name; and the others.

    Args:
        model: the model.
        optimizer: what trains it.
        given: the symmetries to follow; None: those found that move no buffer, and assume nothing
            or were tried on the example.
        example: inputs of the model, if none are given.

    Raises:
        ValueError: if a symmetry that is given moves a buffer or belongs to another model, or none
            is left.
    """
    found = find_symmetries(model, example) if given is None else given
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    kept: dict[str, Symmetry] = {}
    skipped = []
    for name, symmetry in named(found).items():
        reason = ""
        if given is None:
            reason = _unsafe(model, symmetry, tried=example is not None)
        if reason := reason or _untrained(model, symmetry, held):
            line = f"{symmetry.short_name}: {reason}"
            skipped.append(Skipped(symmetry.modules[0], line))
        else:
            kept[name] = symmetry
    if not kept:
        untraced = found.skipped if isinstance(found, Symmetries) else []
        reasons = "; ".join(map(str, [*skipped, *untraced])) or "no symmetry of this model has any"
        raise ValueError(f"there are no charges to follow: {reasons}")
    return kept, skipped


def _unsafe(model: nn.Module, symmetry: Symmetry, tried: bool) -> str:
    """Why a symmetry that was found may conserve nothing; "" if it does."""
    if symmetry.assumes and not tried:
        return f"holds if {symmetry.assumes}; pass example=x, which tries it on inputs x"
    for slot in symmetry.slots:
        if not isinstance(tensor_at(model, slot.path), nn.Parameter):
            return f"moves {slot.path}, which no gradient moves"
    return ""


def _untrained(model: nn.Module, symmetry: Symmetry, held: set[int]) -> str:
    """Why <w, grad> of what is trained is not zero; "" if it is."""
    for path, parameter in parameters_of(model, [symmetry]).items():
        if not parameter.requires_grad:
            return f"{path} is frozen"
        if id(parameter) not in held:
            return f"{path} is no parameter of the optimizer"
    return ""
