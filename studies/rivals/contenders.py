"""Who takes part, each with one number that is tuned: its rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metaopt.base.streams import Stream, item_generator
from metaopt.optim.horizon import hears
from metaopt.optim.learned import load
from metaopt.optim.memory import identity
from metaopt.optim.optimizer import LearnedOptimizer
from studies.lora.contenders import PACKAGE, package_version
from studies.lora.runs import cosine
from studies.minilm.contenders import Plain

Make = Callable[[nn.Module, float], Optimizer]
ADAMW = "AdamW, constant"
COSINE = "AdamW, cosine"
FREE = "Schedule-Free AdamW"
SOAP = "SOAP"
MUON = "Muon"
MOMENTUM = 0.9
WEIGHT_DECAY = 0.01
"""Of AdamW and its kin, torch's own."""
SEED = 19


@dataclass(frozen=True)
class Contender:
    """An optimizer.

    Attributes:
        name: in tables.
        make: the optimizer of a network at a rate.
        grid: the rates that are tried, increasing; only 1 where nothing is tuned.
        told: whether it is told the column's step: a learned rule as its horizon, all others by a
            rate that follows a cosine down to 0 there.
        together: whether one step is the same linear function of the rate whatever came before, and
            acts on each number alone, so that many rates and networks are stepped as one stack.
        learned: whether it is a learned rule.
        version: what tells the parameters of a learned rule, or the package of a rival.
    """

    name: str
    make: Make
    grid: tuple[float, ...]
    told: bool = False
    together: bool = False
    learned: bool = False
    version: str = ""

    def trainer(self, model: nn.Module, rate: float, horizon: int) -> Plain:
        """What a training loop calls.

        Args:
            model: whose parameters are trained.
            rate: at step 1.
            horizon: what an optimizer is told, if it is told.
        """
        optimizer = self.make(model, rate)
        if self.told and isinstance(optimizer, LearnedOptimizer):
            optimizer.horizon = horizon
        if self.learned or not self.told:
            return Plain([optimizer])
        return Plain([optimizer], [LambdaLR(optimizer, lambda step: cosine(step, horizon))])

    def draws(self, count: int) -> tuple[float, ...]:
        """Rates of trials: log-uniform between the ends of the grid, the same shares for all."""
        if len(self.grid) == 1:
            return self.grid
        shares = item_generator(Stream.SEARCH, SEED, 0).random(count)
        low, high = math.log(self.grid[0]), math.log(self.grid[-1])
        return tuple(sorted(float(math.exp(low + (high - low) * share)) for share in shares))


LADDER = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
"""What grids are parts of."""


def rates(first: float) -> tuple[float, ...]:
    """Five of the ladder."""
    begin = LADDER.index(first)
    return LADDER[begin : begin + 5]


def _adamw(model: nn.Module, rate: float) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)


def _sgd(model: nn.Module, rate: float) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)


def hand_made() -> list[Contender]:
    """torch's own."""
    adamw = Contender(ADAMW, _adamw, rates(1e-3), together=True)
    sgd = Contender("SGD with momentum, constant", _sgd, rates(1e-2), together=True)
    return [
        adamw,
        replace(adamw, name=COSINE, told=True),
        sgd,
        replace(sgd, name="SGD with momentum, cosine", told=True),
    ]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon takes: parameters of two axes or more, but for embeddings and the last of them."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = [p for p in model.parameters() if p.ndim > 1 and id(p) not in tables]
    return found[:-1]


def packaged() -> list[Contender]:
    """Those of ``pytorch-optimizer``, with its own settings but for the rate; none without it.

    Muon's steps are scaled to the size of AdamW's, which has all other parameters at the same rate.

    References:
        Defazio et al., The road less scheduled (2024). Vyas et al., SOAP (2024). Jordan et al.,
        Muon (2024). Liu et al., Muon is scalable for LLM training (2025), for its scale. Mishchenko
        and Defazio, Prodigy (2023).
    """
    version = package_version()
    if version is None:
        return []
    given = import_module("pytorch_optimizer")

    def free(model: nn.Module, rate: float) -> Optimizer:
        return given.ScheduleFreeAdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)

    def soap(model: nn.Module, rate: float) -> Optimizer:
        return given.SOAP(model.parameters(), lr=rate)

    def muon(model: nn.Module, rate: float) -> Optimizer:
        hidden = hidden_matrices(model)
        chosen = {id(p) for p in hidden}
        others = [p for p in model.parameters() if id(p) not in chosen]
        groups = [{"params": hidden, "use_muon": True}, {"params": others, "use_muon": False}]
        kept = [group for group in groups if group["params"]]
        return given.Muon(
            kept,
            lr=rate,
            weight_decay=WEIGHT_DECAY,
            use_adjusted_lr=True,
            adamw_lr=rate,
            adamw_wd=WEIGHT_DECAY,
        )

    def prodigy(model: nn.Module, rate: float) -> Optimizer:
        return given.Prodigy(model.parameters(), lr=rate)

    return [
        Contender(FREE, free, rates(3e-3), version=version),
        Contender(SOAP, soap, rates(1e-3), version=version),
        Contender(MUON, muon, rates(1e-3), version=version),
        Contender("Prodigy", prodigy, rates(0.1), version=version),
    ]


def _learned(rule: str, model: nn.Module, rate: float) -> Optimizer:
    return LearnedOptimizer(model, rule, lr=rate)


def learned(rules: Sequence[str]) -> list[Contender]:
    """Learned rules as they are: ``lr`` 1, no schedule, nothing tuned.

    Args:
        rules: names of shipped rules, or files, as ``metaopt.load`` takes them.

    Raises:
        CheckpointError: if there is no such rule.
    """
    found = []
    for rule in rules:
        loaded = load(rule)
        version = identity(loaded, loaded.optimizer)
        make = partial(_learned, rule)
        found.append(Contender(loaded.config.name, make, (1.0,), learned=True, version=version))
    return found


def told_the_step(rules: Sequence[str]) -> list[Contender]:
    """Those of the learned rules that hear how many steps there will be, and are told."""
    pairs = zip(learned(rules), rules, strict=True)
    return [
        replace(one, name=f"{one.name}, told the step", told=True)
        for one, rule in pairs
        if hears(load(rule))
    ]


def everyone(rules: Sequence[str]) -> tuple[list[Contender], list[str]]:
    """All contenders, learned ones first, and a line for those that are left out."""
    found = [*learned(rules), *told_the_step(rules), *hand_made(), *packaged()]
    if package_version() is not None:
        return found, []
    return found, [f"{FREE}, {SOAP}, Muon and Prodigy left out: {PACKAGE} is not installed."]
