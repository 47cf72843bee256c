"""One small rule of each kind, as checkpoints hold it, and all that it does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from support import UPDATE, UPDATE_AND_TELEPORT, regression, tiny_config
from torch import Tensor

from metaopt.base.fields import DTYPES
from metaopt.meta.build import meta_optimizer
from metaopt.optim.learned import LearnedRule

FLATTENED: dict[str, Any] = {"kind": "lstm", "hidden": 4, "outer_lr": 1e-3}


DIRECTIONS = UPDATE | {"basis": "directions"}


SIZED = UPDATE | {"basis": "sized"}


STATEFUL = FLATTENED | {"gradient": "stateful", "basis": "directions"}


RULES: dict[str, dict[str, Any]] = {
    "coordinate pair": UPDATE_AND_TELEPORT,
    "coordinate step": {"step_teleport": UPDATE},
    "flattened pair": {"update": FLATTENED, "teleport": FLATTENED},
    "flattened step": {"step_teleport": FLATTENED},
    "directions": {"update": DIRECTIONS, "teleport": DIRECTIONS},
    "sized": {"update": SIZED, "teleport": SIZED},
    "flattened directions": {"update": STATEFUL, "teleport": STATEFUL},
    "update alone": {"update": FLATTENED},
    "Adam and teleport": {"update": {"kind": "adam", "lr": 0.1}, "teleport": UPDATE},
}


def learned(kind: str = "coordinate pair", dtype: str = "float32") -> LearnedRule:
    teleporter = None if kind == "update alone" else {"max_norm": 0.5}
    config = tiny_config(RULES[kind], teleporter, dtype=dtype)
    training, validation = {"seed": 3}, {"outer_step": 4, "val_loss_geomean": [2.0, 1.0]}
    return LearnedRule(meta_optimizer(config), config, training, validation)


def proposed(rule: LearnedRule, steps: int = 3) -> list[Tensor]:
    """All that a rule does over a few steps."""
    dtype = DTYPES[rule.config.dtype]
    tasks = regression([4, 3, 2], samples=3, seed=0)
    weights = tuple(W.to(dtype) for W in tasks.initial)
    tasks = type(tasks)(tasks.X.to(dtype), tasks.Y.to(dtype), weights, tasks.s)
    state = rule.optimizer.initial_state(tasks, tasks.observe(weights))
    made: list[Tensor] = []
    for _ in range(steps):
        taken = rule.optimizer.step(weights, tasks.observe(weights), state, tasks)
        weights, state = taken.weights, taken.state
        made += weights
    return [tensor.detach() for tensor in made]


AT_STEP = {"geomean": 0.5, "ci95": [0.25, 0.75]}
UNSEEN = {
    "tasks": 1024,
    "task_seed": 5,
    "task": {"width": 10},
    "least_loss_mean": 1.5,
    "loss_geomean_above_least": {"1": AT_STEP, "100": {"geomean": 0.125, "ci95": [0.1, 0.2]}},
    "diverged": 3,
    "teleport": {"norm_mean": 0.25},
}


def with_figures() -> LearnedRule:
    """A rule with figures on unseen tasks."""
    rule = learned()
    return replace(rule, validation=rule.validation | {"test": {"narrow": UNSEEN}})
