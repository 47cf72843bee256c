"""The section ``teleporter`` of a configuration, and the engine that it describes.

To add a kind of teleport, write one file with an engine and add one row to ``ENGINES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from metaopt.base.config import ConfigError
from metaopt.base.fields import Model, PositiveFloat, described
from metaopt.base.network import LeakyReLU
from metaopt.symmetry.actions import (
    Action,
    InexactActionError,
    Linear,
    Orthogonal,
    Scaling,
    ThroughData,
)
from metaopt.symmetry.limits import BoundedNorm, CappedNorm, FixedNorm, NormLimit
from metaopt.symmetry.maps import Cayley, ElementMap, Exponential, FirstOrder
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.regression import layer_shapes
from metaopt.teleport.base import Engine
from metaopt.teleport.engine import TeleportEngine
from metaopt.teleport.guard import Guard, Refuse, Shrink, Unguarded
from metaopt.teleport.pair_engine import PairEngine
from metaopt.teleport.unit_engine import UnitEngine

PAIRS: dict[str, type[Action]] = {
    "through_data": ThroughData,
    "linear": Linear,
    "scaling": Scaling,
    "orthogonal": Orthogonal,
}
"""The actions on pairs of adjacent layers, by their names in configurations."""
UNITS = "units"
LINEAR_PAIRS = "linear_pairs"
_LIMITS: dict[str, Callable[[float], NormLimit]] = {
    "bounded": BoundedNorm,
    "capped": CappedNorm,
    "fixed": FixedNorm,
}
_MAPS: dict[str, Callable[[float], ElementMap]] = {
    "exponential": Exponential,
    "cayley": lambda max_norm: Cayley(),
    "first_order": lambda max_norm: FirstOrder(),
}
_GUARDS: dict[str, Callable[[float], Guard]] = {
    "refuse": Refuse,
    "shrink": Shrink,
    "none": lambda tolerance: Unguarded(),
}
EXACT: dict[str, dict[str, Any]] = {
    UNITS: {"guard": "none", "max_norm": 0.1},
    LINEAR_PAIRS: {"guard": "none", "max_norm": 5.0, "order": "before"},
}
"""Actions that are exact on any data and need no guard, with their defaults."""


def pair_engine(config: TeleporterConfig, task: TaskConfig) -> TeleportEngine:
    """The engine of an action on pairs of adjacent layers.

    Raises:
        ConfigError: if the action has to be exact and cannot be on these tasks.
    """
    action = PAIRS[config.action]()
    if config.inexact == "error":
        try:
            for _, fan_in in layer_shapes(task)[:-1]:
                action.require_exact(LeakyReLU(task.slope), task.samples, fan_in)
        except InexactActionError as error:
            raise ConfigError(
                f"field teleporter.action: {error}; inexact: guard leaves it to the guard"
            ) from None
    return TeleportEngine(
        action=action,
        to_element=_MAPS[config.element](config.max_norm),
        limit=_LIMITS[config.limit](config.max_norm),
        guard=_GUARDS[config.guard](config.tolerance),
        require_exact=config.inexact == "error",
    )


def unit_engine(config: TeleporterConfig, task: TaskConfig) -> UnitEngine:
    """The engine that scales hidden units."""
    return UnitEngine(_LIMITS[config.limit](config.max_norm))


def linear_pair_engine(config: TeleporterConfig, task: TaskConfig) -> PairEngine:
    """The engine that moves the linear pairs of any network; ``task`` decides nothing here."""
    limit = _LIMITS[config.limit](config.max_norm)
    return PairEngine(_MAPS[config.element](config.max_norm), limit)


ENGINES: dict[str, Callable[[TeleporterConfig, TaskConfig], Engine]] = {
    **dict.fromkeys(PAIRS, pair_engine),
    UNITS: unit_engine,
    LINEAR_PAIRS: linear_pair_engine,
}
"""The action's name -> the function that makes its engine."""


if TYPE_CHECKING:
    ActionName = str
else:
    ActionName = Literal[(*ENGINES,)]


class TeleporterConfig(Model):
    """How a teleporter's generators move the weights."""

    action: ActionName = described(
        "through_data",
        "how the group acts: on each pair of adjacent layers; or (`units`, for `unit_lstm`) on "
        "each hidden unit of any network, or (`linear_pairs`, for `pair_lstm` and "
        "`pair_basis_lstm`) on its linear pairs, such as LoRA adapters and the heads of attention",
    )
    element: Literal["exponential", "cayley", "first_order"] = described(
        "exponential",
        "how a generator becomes a group element; `first_order` is the inexact pair of the paper. "
        "`pair_basis_lstm` has no generators: this, `limit` and `max_norm` say nothing to it",
    )
    order: Literal["after", "before", "around"] = described(
        "after",
        "teleport after the update; before it, from the same gradient (for `linear_pairs`); or, a "
        "control, before it and back again after it",
    )
    limit: Literal["bounded", "capped", "fixed"] = described(
        "bounded",
        "what is done with large generators: `bounded` keeps them smoothly below `max_norm`, "
        "`capped` cuts them off there, `fixed` scales all of them to it, as the paper does",
    )
    max_norm: PositiveFloat = described(
        5.0,
        "Frobenius norm of that limit; for `linear_pairs` of each pair; for `units` the root mean "
        "square over hidden units, 0.1",
    )
    guard: Literal["refuse", "shrink", "none"] = described(
        "shrink",
        "what happens to a teleport that changes the outputs of the network too much: leave it "
        "out, make it smaller, or let it through (always for `units` and `linear_pairs`)",
    )
    tolerance: PositiveFloat = described(1e-4, "largest drift that the guard lets through")
    inexact: Literal["error", "guard"] = described(
        "error", "an action that cannot be exact on this data: stop, or leave it to the guard"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_exact_actions(cls, given: Any) -> Any:
        action = given.get("action") if isinstance(given, Mapping) else None
        # Whatever else a file has there is refused as a field, by its name.
        if isinstance(action, str) and action in EXACT:
            return EXACT[action] | dict(given)
        return given

    @model_validator(mode="after")
    def _guarded(self) -> TeleporterConfig:
        if self.inexact == "guard" and self.guard == "none":
            raise ValueError("inexact: guard needs a guard, found guard: none")
        orders = {UNITS: ("after",), LINEAR_PAIRS: ("before",)}
        wanted = orders.get(self.action, ("after", "around"))
        if self.order not in wanted:
            raise ValueError(
                f"action: {self.action} is for order: {' or '.join(wanted)}, found {self.order}"
            )
        if self.action in EXACT and (self.guard != "none" or self.element == "first_order"):
            raise ValueError(
                f"action: {self.action} is exact on any data: expected an exact element and guard: "
                f"none, found {self.element} and {self.guard}"
            )
        if self.element == "cayley" and self.max_norm >= 2:
            raise ValueError(f"cayley needs max_norm below 2, found {self.max_norm}")
        return self


def engine(config: TeleporterConfig, task: TaskConfig) -> Engine:
    """The teleport engine of a configuration.

    Args:
        config: the section ``teleporter``.
        task: the section ``task``, whose shapes decide whether the action can be exact.

    Raises:
        ConfigError: if the action has to be exact and cannot be on these tasks.
    """
    return ENGINES[config.action](config, task)
