"""Who takes part: optimizers by their names in tables, and what of them is swept.

All rates of a grid are tried, and each column has its own best one, chosen by its loss on the very
images that the column is about. That favours all who have a grid; learned rules have none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from metaopt.base.errors import UserError
from metaopt.optim.learned import LearnedRule, load
from metaopt.optim.memory import TELEPORTS_OFF, remember
from metaopt.optim.optimizer import LearnedOptimizer
from studies.lora import moves
from studies.lora.hand_made import Adam, Number, RiemannianAdamW, ScaledGD
from studies.lora.task import pairs_of

Point = dict[str, float]
Make = Callable[[nn.Module, dict[str, Number]], Optimizer]

PACKAGE = "pytorch-optimizer"
WEIGHT_DECAY = 0.01
"""Of AdamW, torch's own."""
ADAMW = "AdamW, cosine"
"""What learned rules are counted in steps of."""


@dataclass(frozen=True)
class Contender:
    """An optimizer of a model's factors.

    Attributes:
        name: in tables.
        make: the optimizer of a model (or of a stack) at a point, whose values are numbers, or
            tensors with one for each member.
        grid: the points that are tried.
        told: whether the rate follows a cosine down to 0 at the column's step.
        together: whether all points and seeds run side by side, as one stack.
        learned: whether it is a learned rule.
        mark: what else tells it apart, such as the digest of a checkpoint.
    """

    name: str
    make: Make
    grid: tuple[Point, ...]
    told: bool = False
    together: bool = True
    learned: bool = False
    mark: str = ""


def doubled(first: float, count: int, factor: float = 2.0) -> list[float]:
    """A grid, each rate a factor above the one before."""
    return [float(f"{first * factor**i:.3g}") for i in range(count)]


def grid(**values: Sequence[float]) -> tuple[Point, ...]:
    """All combinations of values."""
    return tuple(dict(zip(values, point, strict=True)) for point in product(*values.values()))


RATES = doubled(1e-3, 7)
FEW = doubled(1e-3 / 3, 6, 3.0)


def _adam(model: nn.Module, at: dict[str, Number]) -> Optimizer:
    return Adam(pairs_of(model), at["lr"])


def _adamw(model: nn.Module, at: dict[str, Number]) -> Optimizer:
    return Adam(pairs_of(model), at["lr"], WEIGHT_DECAY)


def _decayed(model: nn.Module, at: dict[str, Number]) -> Optimizer:
    return Adam(pairs_of(model), at["lr"], at["decay"])


def _moved(move: moves.Move, second: Any, model: nn.Module, at: dict[str, Number]) -> Optimizer:
    return moves.MovedAdam(pairs_of(model), at["lr"], move, second)


def _random(model: nn.Module, at: dict[str, Number]) -> Optimizer:
    return moves.MovedAdam(pairs_of(model), at["lr"], moves.RandomElements(at["norm"]))


def _reset(model: nn.Module, at: dict[str, Number]) -> Optimizer:
    return moves.ResetAdam(pairs_of(model), at["lr"], at["every"])


def _scaled(model: nn.Module, at: dict[str, Number]) -> Optimizer:
    return ScaledGD(pairs_of(model), at["lr"], at["damping"])


def _riemannian(model: nn.Module, at: dict[str, Number]) -> Optimizer:
    return RiemannianAdamW(pairs_of(model), at["lr"], at["damping"], WEIGHT_DECAY)


def hand_made() -> list[Contender]:
    """Those that run side by side: Adam, its kin and its fixed moves."""
    rates, damped = grid(lr=RATES), [1e-2, 1e-4]
    adaptive = grid(lr=doubled(4e-3, 6), damping=damped)
    decays = grid(lr=RATES[2:6], decay=[0.1, 0.3, 1.0])
    squares, kept = moves.by_squares, moves.kept
    return [
        Contender("Adam", _adam, rates),
        Contender(ADAMW, _adamw, rates, told=True),
        Contender(f"{ADAMW}, decay tuned", _decayed, decays, told=True),
        Contender("ScaledGD", _scaled, grid(lr=doubled(1e-3, 7, 3.0), damping=damped)),
        Contender("Riemannian AdamW", _riemannian, adaptive),
        Contender("Riemannian AdamW, cosine", _riemannian, adaptive, told=True),
        Contender("Adam, balanced frame", partial(_moved, moves.balanced, squares), rates),
        Contender("Adam, balanced, moments kept", partial(_moved, moves.balanced, kept), rates),
        Contender("Adam, A orthonormal", partial(_moved, moves.orthonormal, squares), rates),
        Contender("Adam, A and B in turn", partial(_moved, moves.in_turn, squares), rates),
        Contender("Adam, random elements", _random, grid(lr=RATES[1:6], norm=[0.01, 0.1, 0.5])),
        Contender("Adam, state reset", _reset, grid(lr=RATES[:6], every=[1, 10, 100])),
    ]


def packaged() -> list[Contender]:
    """Those of ``pytorch-optimizer``, one adaptation at a time.

    Raises:
        UserError: if it is not installed.
    """
    try:
        given = import_module("pytorch_optimizer")
    except ImportError:
        raise UserError(
            f"LoRA-RITE, SOAP, Muon, Prodigy and Schedule-Free AdamW need {PACKAGE}: "
            f"pip install 'metaopt-symmetry[studies]'"
        ) from None

    def factors(model: nn.Module) -> list[Any]:
        # A before B of each pair, as LoRA-RITE takes them.
        return [factor for pair in pairs_of(model) for factor in pair]

    def rite(model: nn.Module, at: dict[str, Number]) -> Optimizer:
        return given.LoRARite(factors(model), lr=at["lr"])

    def free(model: nn.Module, at: dict[str, Number]) -> Optimizer:
        return given.ScheduleFreeAdamW(factors(model), lr=at["lr"], weight_decay=WEIGHT_DECAY)

    def soap(model: nn.Module, at: dict[str, Number]) -> Optimizer:
        return given.SOAP(factors(model), lr=at["lr"])

    def muon(model: nn.Module, at: dict[str, Number]) -> Optimizer:
        return given.Muon([{"params": factors(model), "use_muon": True}], lr=at["lr"])

    def prodigy(model: nn.Module, at: dict[str, Number]) -> Optimizer:
        return given.Prodigy(factors(model), lr=at["lr"])

    return [
        Contender("LoRA-RITE", rite, grid(lr=FEW), together=False),
        Contender("LoRA-RITE, cosine", rite, grid(lr=FEW), told=True, together=False),
        Contender("Schedule-Free AdamW", free, grid(lr=doubled(6e-3, 6)), together=False),
        Contender("SOAP", soap, grid(lr=FEW), together=False),
        Contender("SOAP, cosine", soap, grid(lr=FEW), told=True, together=False),
        Contender("Muon", muon, grid(lr=FEW), together=False),
        Contender("Prodigy", prodigy, grid(lr=doubled(0.3, 4)), together=False),
    ]


def package_version() -> str | None:
    """Of ``pytorch-optimizer``; None if it is not installed."""
    try:
        return version("pytorch_optimizer")
    except PackageNotFoundError:
        return None


def learned(rules: Sequence[str]) -> list[Contender]:
    """Learned rules, each at the rate that it was meta-trained with, nothing tuned.

    Args:
        rules: names of shipped rules, or files, as ``metaopt.load`` takes them.

    Returns:
        Each rule; after it, where it teleports, its updates alone: the same optimizer, whose
        elements are all the identity. And where its updates do without frames of their own along
        pairs, the same rule that is given parameters instead of the model: it knows no pairs, and
        has such frames.
    """
    found = []
    for name in rules:
        rule, short = load(name), Path(name).stem
        whole = Contender(
            short,
            partial(_of_model, rule),
            ({"lr": 1.0},),
            together=False,
            learned=True,
            mark=_digest(rule),
        )
        found += [replace(whole, name=one, make=m) for one, m in variants(short, rule).items()]
    return found


def variants(name: str, rule: LearnedRule) -> dict[str, Make]:
    """How a rule and its controls (``learned``) are made, each by its name.

    Args:
        name: of the rule.
        rule: the rule.
    """
    made: dict[str, Make] = {name: partial(_of_model, rule)}
    if rule.optimizer.engine is not None:
        made[off(name)] = partial(_staying, rule)
        if any(one.follows for one in rule.optimizer.rules.values()):
            made[f"{name}{UNKNOWN}"] = partial(_of_parameters, rule)
    return made


UNKNOWN = ", own frames"
"""What the name of a rule that teleports ends in where it knows no pairs."""


def off(name: str) -> str:
    """The name of a rule whose teleports are off."""
    return f"{name}, teleports off"


def _of_model(rule: LearnedRule, model: nn.Module, at: dict[str, Number]) -> Optimizer:
    return LearnedOptimizer(model, rule, lr=at["lr"])


def _staying(rule: LearnedRule, model: nn.Module, at: dict[str, Number]) -> Optimizer:
    return without_teleports(LearnedOptimizer(model, rule, lr=at["lr"]))


def without_teleports(optimizer: LearnedOptimizer) -> LearnedOptimizer:
    """The optimizer, whose pairs stay where they are from now on."""
    remember(optimizer, **{TELEPORTS_OFF: "a control"})
    return optimizer


def _of_parameters(rule: LearnedRule, model: nn.Module, at: dict[str, Number]) -> Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    return LearnedOptimizer(trainable, rule, lr=at["lr"])


def _digest(rule: LearnedRule) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(rule.optimizer.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
