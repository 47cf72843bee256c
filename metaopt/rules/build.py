"""One way to make the meta-optimizer of a configuration: scripts, studies and ``metaopt.load``."""

from __future__ import annotations

from collections.abc import Mapping

from metaopt.base.config import ConfigError
from metaopt.base.fields import DTYPES
from metaopt.rules.around import PreconditionedOptimizer, as_constant, differentiated
from metaopt.rules.base import Rule
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.config import RulesConfig
from metaopt.rules.first import TeleportFirst
from metaopt.rules.learned.affine import AffineModule
from metaopt.rules.learned.precision import TF32, BFloat16, Full
from metaopt.rules.rule_config import Place
from metaopt.tasks.config import TaskConfig
from metaopt.teleport.config import (
    TeleporterConfig,
    engine,
    linear_pair_engine,
    pair_engine,
)

_PRECISIONS = {"full": Full, "tf32": TF32, "bfloat16": BFloat16}


def composed(
    rules: RulesConfig,
    teleporter: TeleporterConfig | None,
    task: TaskConfig,
    *,
    dtype: str,
    precision: str,
    seed: int,
    order: int,
) -> MetaOptimizer:
    """The meta-optimizer of these sections of a configuration, freshly initialised.

    Args:
        rules: what proposes.
        teleporter: how generators move the weights; None where no rule proposes any.
        task: fixes the shapes of flattened rules.
        dtype: a name in ``DTYPES``, of the networks.
        precision: in which the weights of the LSTMs are multiplied.
        seed: the seed of the initialisation.
        order: the order of the meta-gradient, 1 or 2.

    Raises:
        ConfigError: where the sections do not go together.
    """
    made = {name: given.make(Place(name, task, seed)) for name, given in rules.by_name().items()}
    for name, given in rules.by_name().items():
        made[name].requires_grad_(given.learns)
    optimizer = _with_engine(made, rules, teleporter, task, order).to(DTYPES[dtype])
    for module in optimizer.modules():
        if isinstance(module, AffineModule):
            module.precision = _PRECISIONS[precision]()
    return optimizer


def _with_engine(
    made: Mapping[str, Rule],
    rules: RulesConfig,
    teleporter: TeleporterConfig | None,
    task: TaskConfig,
    order: int,
) -> MetaOptimizer:
    """The rules and the teleport engine in the order that they act in."""
    if teleporter is None:
        return MetaOptimizer(made, None)
    for rule in rules.by_name().values():
        rule.require(teleporter)
    match teleporter.order:
        case "after":
            return MetaOptimizer(made, engine(teleporter, task))
        case "before":
            return TeleportFirst(made, linear_pair_engine(teleporter, task))
        case "around":
            if rules.teleport is None:
                raise ConfigError(
                    "field teleporter.order: around needs rules.update and rules.teleport, found "
                    "rules.step_teleport"
                )
            look = {1: as_constant, 2: differentiated}[order]
            return PreconditionedOptimizer(made, pair_engine(teleporter, task), look)
