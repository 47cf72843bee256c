"""``teleport(model)``: random elements of a model's symmetries, applied in place."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from metaopt.models.find import plain
from metaopt.models.find import symmetries as find_symmetries
from metaopt.models.groups import Symmetries, Symmetry
from metaopt.models.movement import move, touches
from metaopt.models.optimizer_state import POLICIES


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

    Args:
        model: whose parameters are moved.
        norm: of the generator of each symmetry (for attention: of each head).
        seed: of the stream that the generators are drawn from.
        symmetries: those to apply, as ``metaopt.symmetries(model)`` gives them, or a part; found
            from the model where None.
        optimizer: whose state moves too.
        state: ``transport`` moves what is linear in gradients by the inverse transpose and forgets
            what cannot be moved exactly; ``reset`` forgets the state of all moved parameters.

    Returns:
        What was applied, and in ``skipped`` what was left alone where it was found here.

    Raises:
        ValueError: for a norm that is not finite, a negative seed, an unknown ``state``, an
            optimizer whose state is not known, or symmetries of another model.

    References:
        Zhao, Gower, Walters and Yu, Improving Convergence and Generalization Using Parameter
        Symmetries, arXiv 2305.13404.
    """
    if state not in POLICIES:
        raise ValueError(f"state must be one of {', '.join(POLICIES)}, found {state!r}")
    model = plain(model)
    chosen = find_symmetries(model) if symmetries is None else Symmetries(symmetries)
    if not chosen and symmetries is None:
        warnings.warn(f"nothing is teleported: {chosen}", stacklevel=2)
    assumed = [str(symmetry) for symmetry in chosen if symmetry.assumes]
    if assumed and symmetries is None:
        warnings.warn(
            f"not checked, see metaopt.symmetries(model, example): {'; '.join(assumed)}",
            stacklevel=2,
        )
    found = touches(model, chosen, norm, seed)
    if optimizer is not None:
        POLICIES[state](optimizer, model, found)
    move(model, found)
    return chosen
