"""The structure of a model that a rule may use: a chain of layers, hidden units, linear pairs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from metaopt.optim.chain import Chain
from metaopt.optim.half import HALF
from metaopt.symmetry.discovery.find import plain, read_beside, symmetries
from metaopt.symmetry.discovery.flow import AS_ON_EXAMPLE
from metaopt.symmetry.groups import Symmetries
from metaopt.symmetry.pairs import LinearPairs, pairs_of
from metaopt.symmetry.units import HiddenUnits, units_of
from metaopt.teleport.base import Engine, Need


def movable_within(
    model: nn.Module | None, parameters: Sequence[Tensor], engine: Engine | None
) -> HiddenUnits | LinearPairs | str:
    """The hidden units or linear pairs of a model that may move, or the reason why none may.

    Args:
        model: the model, or None.
        parameters: the parameters to optimise, in the order in which rules see them.
        engine: the teleport engine of the rule, or None.
    """
    if engine is None or engine.needs is Need.NETWORK:
        return "the rule moves no units or pairs"
    if model is None:
        return "no model was given"
    if any(p.dtype in HALF for p in parameters):
        return "its weights are too coarse to carry out an exact action"
    model = plain(model)
    names = {id(p): name for name, p in model.named_parameters()}
    # Placeholders for parameters outside the model; their names are no paths in it.
    shapes = {names.get(id(p), f"<{i}>"): p.shape for i, p in enumerate(parameters)}
    found = symmetries(model)
    if engine.needs is Need.UNITS:
        movable: HiddenUnits | LinearPairs | None = units_of(found, shapes)
        none = "no hidden units can be scaled"
    else:
        movable, none = _pairs(found, shapes), "it has no linear pairs"
    if movable is None:
        return f"{none}; metaopt.symmetries(model) says why"
    return movable.to(parameters[0].device)


def _pairs(found: Symmetries, shapes: Mapping[str, torch.Size]) -> LinearPairs | None:
    """The linear pairs, with a warning if they rest on what the model did with an example."""
    certain, movable = pairs_of(found, shapes), pairs_of(found, shapes, ("", AS_ON_EXAMPLE))
    if movable is not None and (certain is None or certain.count < movable.count):
        warnings.warn(
            f"teleports leave what this model computes alone if {AS_ON_EXAMPLE}; for updates "
            f"alone, give its parameters instead of the model",
            stacklevel=6,
        )
    return movable


def chain_within(
    model: nn.Module | None, whole: nn.Module | None, parameters: Sequence[Tensor]
) -> Chain | str:
    """The model as a chain, or the reason why it is not one.

    Args:
        model: the model, a functional copy of it, or None.
        whole: the model itself.
        parameters: the parameters to optimise.
    """
    if model is None or whole is None:
        return "no model was given"
    if {id(p) for p in whole.parameters() if p.requires_grad} != {id(p) for p in parameters}:
        return "the parameters to optimise are not those of the model"
    chain = Chain.of(model)
    reader = None if isinstance(chain, str) else read_beside(plain(whole))
    return chain if reader is None else f"its layers may not be all that there is: {reader}"
