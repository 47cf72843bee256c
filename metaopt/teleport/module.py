"""``teleport(model)``: moves a model along its symmetries, by random group elements, in place."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.groups import Skipped, Symmetries, Symmetry
from metaopt.symmetry.modules import move, touches
from metaopt.symmetry.names import ranges
from metaopt.teleport.optimizer_state import POLICIES, forget, require_optimizer_of, unwrapped


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

    The model's outputs stay the same up to the rounding of the parameters' dtype; the new weights
    are computed in float64. Gradients that the parameters hold move by the inverse transpose g^-T,
    and so become the gradients at the new weights. A second call with the same seed and ``-norm``
    undoes the first.

    Where a stream is rotated in front of equal gains (``Symmetry.blurs``), the gradients of these
    gains at the new weights are no known function of the old ones. They are set to None, with the
    optimizer's state of the gains, and a warning says so. These rotations come first, since others
    of the symmetries move the gains. After that they are symmetries no longer: list them again.

    The tensors of a symmetry may lie on different devices: each is moved where it lies, by a copy
    of the same element.

    If no list is given, symmetries that rest on an assumption (``Symmetry.assumes``, printed as
    ``[if ...]``) are not applied, and a warning names them: the outputs would change if the
    assumption were false. If a list is given, all symmetries in it are applied.
    ``metaopt.symmetries(model, example=x)`` returns a list that was tested on the inputs x.

    Args:
        model: the model whose parameters are moved.
        norm: the Frobenius norm of the generator of each symmetry (in attention: of each head).
        seed: the seed of the random generators, at least 0.
        symmetries: the symmetries to apply, all or some of ``metaopt.symmetries(model)``. None:
            those that are found in the model and assume nothing.
        optimizer: the optimizer that trains the model, if its state has to move too. It may be
            wrapped by Accelerate or Lightning.
        state: what happens to the optimizer's state. ``transport`` moves it to the new weights
            where that is possible exactly, and resets the rest (see ``teleport.optimizer_state``);
            ``reset`` resets the state of every parameter that moved.

    Returns:
        The symmetries that were applied. Its ``skipped`` lists what was found and not applied.

    Raises:
        ValueError: if the norm is not finite, the seed is negative, ``state`` is unknown, the
            optimizer belongs to another model or is of an unknown kind, the symmetries belong to
            another model, or a stream would be rotated in front of gains that are not equal.

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
    blurred = dict.fromkeys(path for symmetry in chosen for path in symmetry.blurs if norm)
    if forgotten := forget(optimizer, model, blurred):
        warnings.warn(
            f"gradients of {ranges(forgotten)} at the new weights are no known function of the old "
            f"ones, and are forgotten: take the gradient again before the next step",
            stacklevel=2,
        )
    return chosen


def _left_alone(symmetry: Symmetry) -> Skipped:
    """A symmetry that rests on an assumption, with what the user can do to apply it."""
    reason = (
        f"{symmetry.short_name}: holds if {symmetry.assumes}; to move it, pass "
        f"symmetries=metaopt.symmetries(model, example=x), which tries it on inputs x"
    )
    return Skipped(symmetry.modules[0], reason)
