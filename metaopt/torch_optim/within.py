"""The hidden units within a model that a rule may scale as it trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metaopt.models.find import plain, symmetries
from metaopt.models.units import units_of
from metaopt.torch_optim.precision import HALF
from metaopt.units import Units


def units_within(model: nn.Module | None, parameters: Sequence[Tensor]) -> Units | str:
    """The units, or why there are none that may be scaled.

    Args:
        model: or None.
        parameters: to optimise, in the order in which rules see them.
    """
    if model is None:
        return "no model was given"
    if any(p.dtype in HALF for p in parameters):
        return "its weights are too coarse to carry out an exact action"
    model = plain(model)
    names = {id(p): name for name, p in model.named_parameters()}
    # Parameters of other models take their places, under what is no path.
    shapes = {names.get(id(p), f"<{i}>"): p.shape for i, p in enumerate(parameters)}
    units = units_of(symmetries(model), shapes)
    if units is None:
        return "no hidden units can be scaled; metaopt.symmetries(model) says why"
    return units.to(parameters[0].device)
