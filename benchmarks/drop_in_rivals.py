"""Optimizers that people would pick instead, for ``benchmarks.drop_in``.

torch's AdamW in its fused loops over all parameters (``foreach``), and of ``pytorch-optimizer``
SOAP, Schedule-Free AdamW and Muon as ``studies.rivals`` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from metaopt.base import shipped
from metaopt.optim.optimizer import LearnedOptimizer
from studies.rivals.contenders import FREE, MUON, SOAP, packaged

ADAMW = "AdamW (foreach)"


def adamw(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    """torch's own."""
    return torch.optim.AdamW(model.parameters(), lr=rate, foreach=True)


def default_rule(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    """The learned optimizer that is taken where none is named, told nothing."""
    return LearnedOptimizer(model, lr=rate)


def makers(rate: float) -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    """The default rule where it is there, and its rivals as far as they are installed.

    Args:
        rate: of all of them.
    """
    found: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        ADAMW: partial(adamw, rate),
    }
    for contender in packaged():
        if contender.name in (SOAP, FREE, MUON):
            found[contender.name] = _at(contender.make, rate)
    if shipped.optimizer(shipped.DEFAULT) is not None:
        found[shipped.DEFAULT] = partial(default_rule, rate)
    return found


def _at(
    make: Callable[[nn.Module, float], torch.optim.Optimizer], rate: float
) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: make(model, rate)
