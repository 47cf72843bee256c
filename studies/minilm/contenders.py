"""The optimizers of the study, each as a user would make it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from metaopt import load
from studies.lora.contenders import UNKNOWN, off, variants

WARMUP = 20


class Trainer(Protocol):
    """What a training loop calls."""

    def zero_grad(self) -> None:
        """Before the backward pass."""

    def step(self) -> None:
        """After it."""

    def judged(self, being: bool) -> None:
        """The weights are about to be judged, or have been."""


@dataclass
class Plain:
    """Optimizers and schedules that step together."""

    optimizers: Sequence[torch.optim.Optimizer]
    schedules: Sequence[LambdaLR] = ()

    def zero_grad(self) -> None:
        """Of all."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """Of all."""
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()

    def judged(self, being: bool) -> None:
        """Schedule-Free keeps a mean of weights, and shows it when asked."""
        for optimizer in self.optimizers:
            change = getattr(optimizer, "eval" if being else "train", None)
            if change is not None:
                change()


@dataclass(frozen=True)
class Contender:
    """One optimizer."""

    name: str
    make: Callable[[nn.Module, float, int], Trainer]  # of the network, the rate and the horizon
    rates: tuple[float, ...]  # that it is tuned over; only 1 where nothing is tuned


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def adamw(model: nn.Module, rate: float, horizon: int) -> Trainer:
    """AdamW with torch's own settings."""
    return Plain([torch.optim.AdamW(trained(model), lr=rate)])


def cosine(model: nn.Module, rate: float, horizon: int) -> Trainer:
    """AdamW, its rate times (1 + cos(pi t / horizon)) / 2 at step t."""
    optimizer = torch.optim.AdamW(trained(model), lr=rate)

    def factor(step: int) -> float:
        return (1 + math.cos(math.pi * min(step, horizon) / horizon)) / 2

    return Plain([optimizer], [LambdaLR(optimizer, factor)])


def rite(model: nn.Module, rate: float, horizon: int) -> Trainer:
    """LoRA-RITE on the factors, AdamW on the head, which is no pair, at the same rate.

    References:
        Yen et al., LoRA done RITE (2025); the implementation is that of ``pytorch-optimizer``.
    """
    from pytorch_optimizer import LoRARite  # type: ignore[import-not-found]

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    # peft lists A [r, in] before B [out, r], which is the order that LoRARite pairs them in.
    factors = [p for name, p in named if "lora_" in name]
    others = [p for name, p in named if "lora_" not in name]
    return Plain([LoRARite(factors, lr=rate), torch.optim.AdamW(others, lr=rate)])


def schedule_free(model: nn.Module, rate: float, horizon: int) -> Trainer:
    """Schedule-Free AdamW with a warm-up of 20 steps.

    References:
        Defazio et al., The road less scheduled (2024); as in ``pytorch-optimizer``.
    """
    from pytorch_optimizer import ScheduleFreeAdamW  # type: ignore[import-not-found]

    return Plain([ScheduleFreeAdamW(trained(model), lr=rate, warmup_steps=WARMUP)])


def learned(name: str) -> Contender:
    """A learned rule as it is: ``lr`` 1, no schedule, nothing tuned.

    Args:
        name: that of the rule, or a file; at its end ``off("")`` or ``UNKNOWN`` for a control.
    """
    rule = name.removesuffix(off("")).removesuffix(UNKNOWN)

    def make(model: nn.Module, rate: float, horizon: int) -> Trainer:
        return Plain([variants(rule, load(rule))[name](model, {"lr": rate})])

    return Contender(name, make, (1.0,))


COSINE = Contender("AdamW, cosine", cosine, (1e-3, 2e-3, 4e-3))
RIVALS = (
    COSINE,
    Contender("AdamW", adamw, (1e-3, 2e-3, 4e-3)),
    Contender("LoRA-RITE", rite, (5e-4, 1e-3, 2e-3, 4e-3)),
    Contender("Schedule-Free AdamW", schedule_free, (2e-3, 4e-3, 8e-3)),
)


def named(name: str) -> Contender:
    """A rival by its name, or else a learned rule by its name or file."""
    return next((rival for rival in RIVALS if rival.name == name), None) or learned(name)
