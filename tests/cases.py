"""Learned rules and tasks of small size, in float64, that tests of whole unrolls share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support import PLAIN_META, PLAIN_TELEPORTER, amplify_head, plain

from metaopt import LearnedRule
from metaopt.base.config import check
from metaopt.base.streams import Stream
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from metaopt.rules.learned.flattened import StepSizeGroupElementLSTM
from metaopt.tasks.build import task_family
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.regression import TaskBatch

TASK = {
    "width": 4,
    "inputs": 5,
    "outputs": 3,
    "samples": 4,
    "weights": "gaussian",
    "data": "gaussian",
}
FLAT = {"kind": "lstm", "hidden": 6, "gradient": "signed_log", "scale": 0.1, "outer_lr": 1e-3}
COORDINATE = {"kind": "coordinate_lstm", "hidden": 5, "scale": 0.1, "outer_lr": 1e-3}
FLAT_DIRECTIONS = FLAT | {"gradient": "stateful", "basis": "directions"}
DIRECTIONS = COORDINATE | {"basis": "directions"}
LAYER = {"kind": "layer_lstm", "hidden": 5, "outer_lr": 1e-3}
UNITS = {"kind": "unit_lstm", "hidden": 5, "outer_lr": 1e-3}

RULES: dict[str, dict[str, Any]] = {
    "lstm": {"update": FLAT, "teleport": FLAT},
    "lstm_update": {"update": FLAT},
    "lstm_step": {"step_teleport": FLAT},
    "coordinate_lstm": {"update": COORDINATE, "teleport": COORDINATE},
    "coordinate_lstm_update": {"update": COORDINATE},
    "coordinate_lstm_step": {"step_teleport": COORDINATE},
    "lstm_directions": {"update": FLAT_DIRECTIONS, "teleport": FLAT_DIRECTIONS},
    "lstm_directions_update": {"update": FLAT_DIRECTIONS},
    "lstm_directions_step": {"step_teleport": FLAT_DIRECTIONS},
    "coordinate_directions": {"update": DIRECTIONS, "teleport": DIRECTIONS},
    "coordinate_directions_update": {"update": DIRECTIONS},
    "coordinate_directions_step": {"step_teleport": DIRECTIONS},
    "adam": {"update": {"kind": "adam", "lr": 0.05}, "teleport": COORDINATE},
    "layer": {"update": LAYER},
    "layer_units": {"update": LAYER, "teleport": UNITS},
    "adam_units": {"update": {"kind": "adam", "lr": 0.05}, "teleport": UNITS},
}
BY_UNITS = {"action": "units", "guard": "none"}


def train_config(kind: str, **sections: Any) -> TrainConfig:
    """A small configuration; ``sections`` add to or replace whole sections."""
    rules = {name: plain(name, rule) for name, rule in sections.pop("rules", RULES[kind]).items()}
    teleporter = BY_UNITS if "units" in kind else PLAIN_TELEPORTER | sections.pop("teleporter", {})
    meta = {"batch": 64, "outer_steps": 1000} | PLAIN_META | sections.pop("meta", {})
    data: dict[str, Any] = {
        "name": kind,
        "label": kind,
        "dtype": "float64",
        "task": TASK,
        "rules": rules,
        "meta": meta,
        "teleporter": teleporter if {"teleport", "step_teleport"} & rules.keys() else None,
    }
    return check(TrainConfig, data | sections, "test")


def learned_rule(kind: str, order: int = 1) -> LearnedRule:
    """An untrained rule whose outputs are large enough to matter within a few steps."""
    through_data = {"teleport", "step_teleport"} & RULES[kind].keys() and "units" not in kind
    # Rules that have learned to do without may be stepped where neither is known.
    hide = {"loss": 0.5, "inputs": 0.0 if through_data else 0.5}
    config = train_config(kind, meta={"order": order, "steps": 100, "hide": hide})
    rule = LearnedRule(meta_optimizer(config), config)
    for own in rule.optimizer.rules.values():
        amplify_head(own, 2 if kind.startswith("lstm") and "directions" not in kind else 20)
        if isinstance(own, StepSizeGroupElementLSTM):
            # The row of the step size starts small; here it has to be seen.
            with torch.no_grad():
                own.head.W[-1] = own.head.W[0]
    return rule


def tasks(config: TaskConfig, count: int, start: int = 0) -> TaskBatch:
    """Training tasks in float64."""
    family = task_family(config)
    return family.sample(Stream.TRAIN, 7, start, count, torch.float64)


def run_and_resume(
    config: TrainConfig, seen: Callable[[MetaTrainer], Any], outer: int = 8, after: int = 3
) -> list[Any]:
    """What is ``seen`` after each outer step; a run that is resumed ends with the same bits.

    Args:
        config: of the run.
        seen: asked after each outer step.
        outer: outer steps.
        after: how many the resumed run is cut.
    """

    def run() -> MetaTrainer:
        return MetaTrainer(config, torch.device("cpu"))

    whole, first, second = run(), run(), run()
    found = []
    for _ in range(outer):
        whole.outer_step()
        found.append(seen(whole))
    for _ in range(after):
        first.outer_step()
    second.restore(first.state())
    for _ in range(outer - after):
        second.outer_step()
    for a, b in zip(whole.optimizer.parameters(), second.optimizer.parameters(), strict=True):
        assert torch.equal(a, b)
    return found
