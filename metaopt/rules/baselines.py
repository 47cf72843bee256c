"""The hand-made optimizers that exist: their hyper-parameters, and how each is made.

A new one is a class behind ``Optimizer`` (or a ``Rule``) in a file of its own, and one row in
``BASELINES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from metaopt.rules.base import Rule
from metaopt.rules.composed import MetaOptimizer, Optimizer
from metaopt.rules.gradient_teleport import GradientTeleport
from metaopt.rules.hand_made import Adam, CosineAdamW, GradientDescent, Momentum
from metaopt.rules.lbfgs import LBFGS
from metaopt.rules.references import KFAC, SolveLast, WhitenLast
from metaopt.symmetry.actions import ThroughData
from metaopt.symmetry.limits import CappedNorm
from metaopt.symmetry.maps import Exponential
from metaopt.teleport.config import TeleporterConfig
from metaopt.teleport.engine import TeleportEngine
from metaopt.teleport.guard import Refuse

Possible = Callable[[float], bool]
"""Whether a hyper-parameter can have a value."""
Values = Mapping[str, float]


def _positive(value: float) -> bool:
    return value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


def _count(value: float) -> bool:
    return isinstance(value, int) and value >= 1


def _decay(value: float) -> bool:
    return 0 <= value < 1


@dataclass(frozen=True)
class Baseline:
    """A hand-made optimizer.

    Attributes:
        make: the optimizer of values of its hyper-parameters, and of the step that it is judged at,
            for those with a schedule.
        hyperparameters: by name, and which values each can have.
        is_reference: whether it knows more than first-order methods do, and competes with nothing.
        needs_network: whether it has to know the network of the tasks.
    """

    make: Callable[[Values, int], Optimizer]
    hyperparameters: Mapping[str, Possible]
    is_reference: bool = False
    needs_network: bool = False


Made = Callable[[Values, int], MetaOptimizer]

TELEPORT: Mapping[str, Possible] = {"norm": _positive, "ascents": _count, "every": _count}
"""The hyper-parameters of a searched teleport: the length of an ascent step, and how many."""


def _ruled(rule: Callable[..., Rule]) -> Made:
    """What makes an optimizer of an update rule alone."""
    return lambda values, horizon: MetaOptimizer({"update": rule(**values)}, None)


def _cosine(values: Values, horizon: int) -> MetaOptimizer:
    return MetaOptimizer({"update": CosineAdamW(**values, horizon=horizon)}, None)


def _teleported(make: Made) -> Callable[[Values, int], Optimizer]:
    """What makes the same optimizer with a searched teleport."""

    def made(values: Values, horizon: int) -> Optimizer:
        own = {name: value for name, value in values.items() if name not in TELEPORT}
        norm, ascents = values["norm"], int(values["ascents"])
        engine = TeleportEngine(
            ThroughData(),
            Exponential(ascents * norm),
            CappedNorm(ascents * norm),
            Refuse(TeleporterConfig().tolerance),
            require_exact=False,
        )
        every = int(values["every"])
        return GradientTeleport(make(own, horizon), norm, ascents, every, engine)

    return made


RULES: dict[str, tuple[Made, Mapping[str, Possible]]] = {
    "GD": (_ruled(GradientDescent), {"lr": _positive}),
    "Momentum": (_ruled(Momentum), {"lr": _positive, "momentum": _decay}),
    "Adam": (_ruled(Adam), {"lr": _positive, "beta1": _decay, "beta2": _decay}),
    "AdamW+cosine": (_cosine, {"lr": _positive, "beta1": _decay, "decay": _not_negative}),
}
"""Optimizers that are an update rule, with their hyper-parameters."""

BASELINES: dict[str, Baseline] = {
    **{name: Baseline(make, possible) for name, (make, possible) in RULES.items()},
    "L-BFGS": Baseline(
        lambda values, horizon: LBFGS(history=int(values["history"])), {"history": _count}
    ),
    **{
        f"{name}+teleport": Baseline(
            _teleported(make), {**possible, **TELEPORT}, needs_network=True
        )
        for name, (make, possible) in RULES.items()
    },
    "K-FAC": Baseline(
        lambda values, horizon: KFAC(**values),
        {"lr": _positive, "damping": _positive},
        is_reference=True,
        needs_network=True,
    ),
    "solve W2": Baseline(
        lambda values, horizon: SolveLast(), {}, is_reference=True, needs_network=True
    ),
    "whiten W2": Baseline(
        lambda values, horizon: WhitenLast(), {}, is_reference=True, needs_network=True
    ),
}


def hand_made(name: str, values: Values, horizon: int) -> Optimizer:
    """A hand-made optimizer.

    Args:
        name: in ``BASELINES``.
        values: the values of its hyper-parameters.
        horizon: the step that it is judged at, for those with a schedule.
    """
    return BASELINES[name].make(values, horizon)
