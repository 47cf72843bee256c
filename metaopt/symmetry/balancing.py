"""The point of an orbit at which a stack of tensors has the least squared norm.

    min over g of  sum over tensors and rows r of ||g x_r||^2

for the scalings, general linear groups, and scales and rotations of a model together. The stack
moves like weights (their norm), or like gradients: the mean gradient, the noise of gradients, the
gradients whose squares add up to the trace of the Gauss-Newton matrix. Each group alone has a
closed form, the others held: for a unit e^(4t) = out / in, for matrices the geometric mean
(``symmetry.geometric_mean``). The sum is convex in the t of all scalings and geodesically convex
in all matrices, so that taking the groups in turn finds the one minimum; as neighbouring layers
pull at each other, the steps are lengthened as in successive over-relaxation.

References:
    Osborne, On pre-conditioning of matrices (1960); Young, Iterative Solution of Large Linear
    Systems (1971), for the over-relaxation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from metaopt.symmetry.balancing_parts import Like, Part, RunsOffError, Scales, Tensors, part
from metaopt.symmetry.conserved import QUADRATIC
from metaopt.symmetry.elements import Element
from metaopt.symmetry.groups import Group, Symmetry

DONE = 1e-14
"""The relative gradient along the orbit at which the search ends."""
GOOD = 1e-11
"""The same, from which on rounding may be what is left."""
MOST = 2000
PATIENCE = 40
"""Sweeps over all groups at most, and without progress."""
PLAIN = 6
"""Sweeps after which steps are lengthened."""
LONGEST = 1.95


class Balanced(dict[Symmetry, Element]):
    """The element of each symmetry that goes to the minimum.

    Attributes:
        before: the squared norm of the stack.
        after: the same at the minimum.
        residual: the largest gradient along the orbit that is left, relative to its scale.
        limits: where t would run to, inf or -inf, for units without a minimum, and 0 for others:
            [blocks, size] for positive scaling, [blocks] for a scale and rotation. Only symmetries
            that have such units are in it.
        unseen: which units have nothing on both sides, so that every t is as good: [blocks, size],
            or [blocks, 1] for a scale and rotation. Only symmetries that have such units are in it.
        moments: sum_r x_r x_r^T of what moves by g of each general linear group, [blocks, k, k].
        reasons: for symmetries that stay, or some of whose units stay, why.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before = self.after = self.residual = 0.0
        self.limits: dict[Symmetry, Tensor] = {}
        self.unseen: dict[Symmetry, Tensor] = {}
        self.moments: dict[Symmetry, Tensor] = {}
        self.reasons: dict[Symmetry, str] = {}


def balanced(
    symmetries: Iterable[Symmetry],
    stacks: Mapping[str, Tensor],
    like: Like,
    only: Mapping[Symmetry, Tensor] | None = None,
) -> Balanced:
    """The elements g at which sum_r ||g x_r||^2 is least, for all symmetries together.

    Args:
        symmetries: those that are quadratic (``conserved.QUADRATIC``) are used, others ignored.
        stacks: {path: [rows, *shape of the parameter]}, for all parameters that they move.
        like: whether the stack moves as weights do, or as gradients, by the inverse transpose.
        only: the units that may move, as ``unseen`` names them; None: all. Symmetries that are
            not in it stay.

    Raises:
        ValueError: if a stack is missing, or its numbers are not finite.
    """
    chosen = [symmetry for symmetry in symmetries if symmetry.group in QUADRATIC]
    if only is not None:
        chosen = [symmetry for symmetry in chosen if symmetry in only]
    free, reasons = dict(only or {}), dict[Symmetry, str]()
    while True:
        tensors = Tensors(chosen, stacks, like)
        parts = [part(symmetry, tensors, like, free.get(symmetry)) for symmetry in chosen]
        found = Balanced()
        found.before = tensors.norm()
        try:
            found.residual = _searched(parts)
        except RunsOffError as error:
            # It stays, and the others begin again.
            which = error.which[:, None, None] if error.which.dim() == 1 else error.which
            one, before = error.symmetry, free.get(error.symmetry)
            free[one] = ~which if before is None else before & ~which
            count = int((~free[one]).sum())
            units = f" ({count} of {free[one].numel()})" if free[one].numel() > 1 else ""
            reasons[one] = f"{error.reason}{units}"
            continue
        found.after = tensors.norm()
        found.reasons |= reasons
        return _with_elements(found, parts)


def _with_elements(found: Balanced, parts: Iterable[Part]) -> Balanced:
    """What was found, with what each part says."""
    for one in parts:
        found[one.symmetry] = one.element()
        if one.limit is not None:
            found.limits[one.symmetry] = one.limit
        if isinstance(one, Scales) and bool(one.unseen.any()):
            found.unseen[one.symmetry] = one.unseen
        if one.moments is not None:
            found.moments[one.symmetry] = one.moments
        if one.reason:
            found.reasons[one.symmetry] = one.reason
    return found


def logarithm(symmetry: Symmetry, element: Element) -> Tensor:
    """t = 1/2 log(g^T g) of an element g, [blocks, k], [blocks, k, k] or [blocks]."""
    g, _ = matrices(symmetry, element)
    if symmetry.group is Group.SCALING:
        return g.diagonal(dim1=1, dim2=2).log()
    if symmetry.group is Group.ROTARY:
        return g[:, :, 0].norm(dim=1).log()
    values, vectors = torch.linalg.eigh(g.mT @ g)
    return (vectors * (values.log() / 2)[:, None]) @ vectors.mT


def matrices(symmetry: Symmetry, element: Element) -> tuple[Tensor, Tensor]:
    """g and its inverse as matrices, [blocks, k, k]."""
    size = symmetry.size
    eye = torch.eye(size, dtype=torch.float64).expand(1, symmetry.blocks, size, size)
    return element.act(eye)[0], element.act_inversely_transposed(eye)[0].mT


def _searched(parts: list[Part]) -> float:
    """Take the groups in turn until nothing moves; the residual that is left."""
    longer, best, since = 1.0, float("inf"), 0
    history: list[float] = []
    for sweep in range(MOST):
        worst = max((one.step(longer) for one in parts), default=0.0)
        history.append(worst)
        since = 0 if worst < 0.9 * best else since + 1
        best = min(best, worst)
        if worst <= DONE or (since > PATIENCE and best <= GOOD):
            break
        if sweep == PLAIN and len(parts) > 1:
            shrinks = (history[-1] / max(history[-4], 1e-300)) ** (1 / 3)
            longer = min(LONGEST, 2 / (1 + max(0.0, 1 - shrinks) ** 0.5))
        elif since > PATIENCE:
            longer, since = 1 + (longer - 1) / 2, 0
    return max((one.residual() for one in parts), default=0.0)
