"""Charges: what gradient flow conserves along the symmetries of a model.

    C = <w, w>,   <x, y> = sum over incoming slots p x_s y_s^T  -  the same over outgoing slots

A symmetry w -> g w with g = exp(t T), T symmetric, gives <w, grad L> = 0 for the gradient on every
mini-batch, so that d/dt <w, w> = -2 <w, grad L> = 0 along gradient flow. x_s is the slot of x as a
matrix [k, any], p the power by which the slot moves.

    general linear        [k, k]   W_in W_in^T - W_out^T W_out, symmetric
    positive scaling      [k]      its diagonal: |w_in|^2 + b^2 - p |w_out|^2
    scale and rotation    [1]      its trace; the rotation has none that is not zero
    translation           [n]      sums over the units: 1^T W, 1^T b

Orthogonal groups have none (their T is skew, and w^T T w = 0 for all w), nor have sign flips and
permutations, which are discrete.

Reference: Kunin et al., Neural Mechanics, arXiv 2012.04728; Ziyin et al., arXiv 2402.07193.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.modules import require, tensor_at

Tensors = Mapping[str, Tensor]
"""Path of a parameter -> a tensor of its shape."""

QUADRATIC = frozenset({Group.LINEAR, Group.SCALING, Group.ROTARY})
"""Groups whose charges are quadratic in the weights."""
CONSERVING = QUADRATIC | {Group.TRANSLATION}
"""Groups that have charges."""


def named(symmetries: Iterable[Symmetry]) -> dict[str, Symmetry]:
    """The symmetries that have charges, by name.

    The group is added where two have one name, and a number where that leaves two alike.
    """
    chosen = [symmetry for symmetry in symmetries if symmetry.group in CONSERVING]
    count = Counter(symmetry.name for symmetry in chosen)
    seen: Counter[str] = Counter()
    found: dict[str, Symmetry] = {}
    for one in chosen:
        name = one.name if count[one.name] == 1 else f"{one.name} ({one.group})"
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} {seen[name]}"] = one
    return found


def halves(symmetry: Symmetry, left: Tensors, right: Tensors) -> tuple[Tensor, Tensor]:
    """sum_s p x_s y_s^T over the incoming slots, and over the outgoing ones.

    Args:
        symmetry: general linear, positive scaling, or scale and rotation.
        left: x, by path; slots whose path is missing count as zero.
        right: y, of the same dtype.

    Returns:
        Two tensors, each [blocks, k, k], symmetric, for general linear, [blocks, k] for positive
        scaling, [blocks] for scale and rotation.
    """
    product = _PRODUCTS[symmetry.group]

    def total(slots: Iterable[Slot]) -> Tensor | None:
        parts = [
            slot.power * product(*(_entries(symmetry, slot, side) for side in (left, right)))
            for slot in slots
            if slot.path in left
        ]
        return torch.stack(parts).sum(0) if parts else None

    sums = total(symmetry.incoming), total(symmetry.outgoing)
    some = next((one for one in sums if one is not None), None)
    if some is None:
        raise ValueError(f"symmetry {symmetry.short_name!r}: none of its parameters is given")
    zero = torch.zeros_like(some)
    incoming, outgoing = (zero if one is None else one for one in sums)
    return incoming, outgoing


def form(symmetry: Symmetry, left: Tensors, right: Tensors) -> Tensor:
    """<x, y>, with one block's axis left out; linear in x, and in y.

    For a translation, which needs no partner, the sums over the units of ``left`` [n].
    """
    if symmetry.group is Group.TRANSLATION:
        return _sums(symmetry, left)
    incoming, outgoing = halves(symmetry, left, right)
    value = incoming - outgoing
    return value[0] if symmetry.blocks == 1 and value.dim() > 1 else value


@torch.no_grad()
def charges(
    model: nn.Module, symmetries: Iterable[Symmetry] | None = None, example: Any = None
) -> dict[str, Tensor]:
    """C = W_in W_in^T - W_out^T W_out, for each symmetry of a model what gradient flow conserves.

    A bias counts as one more column of W_in. Charges are computed in float64.

    Args:
        model: any module, whose weights have values.
        symmetries: those to compute charges of; None: ``metaopt.symmetries(model, example)``.
        example: inputs of the model, if the list is not given (see ``metaopt.symmetries``).

    Returns:
        By the symmetry's name: [k, k] for a general linear group, [k] for positive scaling, [1]
        for a scale and rotation, with a first axis for blocks if there are several (heads), and [n]
        for a translation. Orthogonal groups, sign flips and permutations have none.

    Raises:
        ValueError: if a symmetry belongs to another model, or moves a buffer, which no gradient
            moves.

    References:
        Kunin et al., Neural Mechanics, arXiv 2012.04728, section 3.
    """
    found = find_symmetries(model, example) if symmetries is None else symmetries
    model = plain(model)
    chosen = named(found)
    weights = parameters_of(model, chosen.values())
    wide = {path: parameter.detach().double() for path, parameter in weights.items()}
    return {name: form(symmetry, wide, wide) for name, symmetry in chosen.items()}


def parameters_of(model: nn.Module, symmetries: Iterable[Symmetry]) -> dict[str, nn.Parameter]:
    """The parameters that symmetries move, by path.

    Raises:
        ValueError: if a symmetry belongs to another model, or moves a buffer.
    """
    found: dict[str, nn.Parameter] = {}
    for symmetry in symmetries:
        for slot in symmetry.slots:
            require(model, symmetry, slot)
            tensor = tensor_at(model, slot.path)
            if not isinstance(tensor, nn.Parameter):
                raise ValueError(
                    f"symmetry {symmetry.short_name!r} moves {slot.path!r}, which is no parameter: "
                    f"gradient flow leaves it, and conserves nothing"
                )
            found[slot.path] = tensor
    return found


def _entries(symmetry: Symmetry, slot: Slot, tensors: Tensors) -> Tensor:
    return slot.entries(tensors[slot.path], symmetry.blocks, symmetry.size)


def _matrices(x: Tensor, y: Tensor) -> Tensor:
    """(x y^T + y x^T) / 2 for entries [copies, blocks, k, any], summed over copies."""
    x, y = (z.permute(1, 2, 0, 3).flatten(2) for z in (x, y))
    product = x @ y.mT
    return (product + product.mT) / 2


def _diagonals(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum((0, 3))


def _traces(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum((0, 2, 3))


_PRODUCTS: dict[Group, Callable[[Tensor, Tensor], Tensor]] = {
    Group.LINEAR: _matrices,
    Group.SCALING: _diagonals,
    Group.ROTARY: _traces,
}


def _sums(symmetry: Symmetry, tensors: Tensors) -> Tensor:
    parts = [
        _entries(symmetry, slot, tensors).sum((0, 2)).flatten()
        for slot in symmetry.slots
        if slot.path in tensors
    ]
    return torch.cat(parts)
