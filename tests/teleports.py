"""What the tests of real models share: outputs before and after, and what was said of a model."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import ZOO

import metaopt
from metaopt.symmetry.groups import Symmetries

every_specimen = pytest.mark.parametrize("name", ZOO)
every_moving = pytest.mark.parametrize(
    "name", [name for name, specimen in ZOO.items() if specimen.found]
)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All of them, with the same masks of dropout each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return [y for y in pytree.tree_leaves(model(x)) if isinstance(y, Tensor)]


def change(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest relative one of an output."""
    assert all(x.dtype == y.dtype for x, y in zip(before, after, strict=True))
    changes = [(x - y).norm() / x.norm() for x, y in zip(before, after, strict=True)]
    return float(torch.stack(changes).max())


def teleported(model: nn.Module, *arguments: Any, **options: Any) -> nn.Module:
    """A copy of the model, teleported by all that is listed, whatever it assumes of inputs."""
    other = copy.deepcopy(model)
    if len(arguments) < 3:
        options.setdefault("symmetries", metaopt.symmetries(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        metaopt.teleport(other, *arguments, **options)
    return other


def differ(model: nn.Module, other: nn.Module) -> bool:
    """Whether any tensor of two models has other bits."""
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return any(not torch.equal(w, v) for w, v in pairs)


def names_found(model: nn.Module, **options: Any) -> list[str]:
    """Group and name of each symmetry."""
    return [f"{s.group}: {s.name}" for s in metaopt.symmetries(model, **options)]


def reason_for(found: Symmetries, module: str) -> str:
    """Why a module was left alone."""
    return "; ".join(entry.reason for entry in found.skipped if entry.module == module)


def refusal(model: nn.Module) -> str:
    """What ``teleport`` says that moves nothing for want of a list."""
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="nothing is teleported") as said:
        applied = metaopt.teleport(model)
    assert not applied
    assert not differ(model, before)
    (warning,) = said
    assert str(applied) in str(warning.message)
    return str(warning.message)
