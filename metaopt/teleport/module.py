"""``teleport(model)``: random elements of a model's symmetries, applied in place."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.groups import Skipped, Symmetries, Symmetry
from metaopt.symmetry.modules import move, touches
from metaopt.teleport.optimizer_state import POLICIES, require_optimizer_of, unwrapped


def teleport(
    model: nn.Module,
    norm: float = 0.5,
    seed: int = 0,
    symmetries: Sequence[Symmetry] | None = None,
    *,
    optimizer: Optimizer | None = None,
    state: str = "transport",
) -> Symmetries:
    """w -> g w for a random element g = exp(T), ||T||_F = norm, of each symmetry, in place.

    The outputs stay, up to the rounding of the parameters' type; the weights are computed in
    float64. Gradients that the parameters hold move by the inverse transpose, to what they would be
    at the new weights. The same seed with -norm undoes it.

    Without a list, symmetries that rest on an assumption (``Symmetry.assumes``, printed as
    ``[if ...]``) are left alone with a warning: if it were false, the outputs would change. With a
    list, what is in it is applied; ``metaopt.symmetries(model, example=x)`` gives one that was
    tried on inputs x.

    Args:
        model: whose parameters are moved.
        norm: of the generator of each symmetry (for attention: of each head).
        seed: of the stream that the generators are drawn from.
        symmetries: those to apply, as ``metaopt.symmetries(model)`` gives them, or a part; where
            None, those that are found from the model and assume nothing.
        optimizer: whose state moves too, wrapped by Accelerate or Lightning or not.
        state: ``transport`` moves what is linear in gradients by the inverse transpose and forgets
            what cannot be moved exactly; ``reset`` forgets the state of all moved parameters.

    Returns:
        What was applied, and in ``skipped`` what was left alone where it was found here.

    Raises:
        ValueError: for a norm that is not finite, a negative seed, an unknown ``state``, an
            optimizer of another model or whose state is not known, or symmetries of another model.

    References:
        Zhao, Gower, Walters and Yu, Improving Convergence and Generalization Using Parameter
        Symmetries, arXiv 2305.13404.
    """
    if state not in POLICIES:
        raise ValueError(f"state must be one of {', '.join(POLICIES)}, found {state!r}")
    model = plain(model)
    if optimizer is not None:
        optimizer = unwrapped(optimizer)
        require_optimizer_of(optimizer, model)
    if symmetries is None:
        found = find_symmetries(model)
        left_alone = [_left_alone(symmetry) for symmetry in found if symmetry.assumes]
        chosen = Symmetries([s for s in found if not s.assumes], found.skipped + left_alone)
        if not chosen:
            warnings.warn(f"nothing is teleported: {chosen}", stacklevel=2)
        elif left_alone:
            warnings.warn(f"left alone: {'; '.join(map(str, left_alone))}", stacklevel=2)
    else:
        chosen = Symmetries(symmetries)
    touched = touches(model, chosen, norm, seed)
    if optimizer is not None:
        POLICIES[state](optimizer, model, touched)
    move(model, touched)
    return chosen


def _left_alone(symmetry: Symmetry) -> Skipped:
    """One that rests on an assumption, and what to do about it."""
    reason = (
        f"{symmetry.name}: holds if {symmetry.assumes}; to move it, pass "
        f"symmetries=metaopt.symmetries(model, example=x), which tries it on inputs x"
    )
    return Skipped(symmetry.modules[0], reason)
