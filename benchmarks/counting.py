"""How much arithmetic a step takes, counted from the shapes of the networks.

A network reads ``inputs`` features on ``rows`` rows, has L cells of size h and a head, and where
features are wired (``basis: sized``) another one on them:

    F = I + rows (4 h h + (L - 1) 4 h (2 h) + h outputs)    multiply-adds forward
    I = rows inputs (4 h + wired)                           of which on the inputs

Backward, each multiply-add forward costs one for the weight's gradient and one for the gradient of
what it was multiplied with; under first order no gradient with respect to the inputs is needed, so
that I counts once. A step of meta-training takes 2 (3 F - I) floating-point operations, one of
evaluation 2 F. For the paper's shapes (20 by 20, hidden 300) F = 4.44 M and I = 1.92 M with update
and teleport: 22.8 MFLOP a step, 2.28 GFLOP a trajectory of 100 steps; 1.18 with the update alone.
For the coordinate-wise pair (hidden 20, on 800 weights and 400 generator entries) F = 6.68 M and
I = 0.84 M: 3.8 GFLOP. Element-wise work, features, the optimizee and the teleport are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from metaopt.meta.config import TrainConfig
from metaopt.rules.learned.flattened import FlattenedRule
from metaopt.rules.rule_config import NetworkConfig, Place
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.regression import layer_shapes

CELLS = 2
"""L: both kinds of rules are two LSTM cells and a head."""


@dataclass(frozen=True)
class Shape:
    """Of one network."""

    rows: int  # for each trajectory
    inputs: int  # features a row
    hidden: int  # h
    outputs: int  # of the head, a row
    wired: int = 0  # outputs of the head on the features, a row

    @property
    def on_inputs(self) -> int:
        """I."""
        return self.rows * self.inputs * (4 * self.hidden + self.wired)

    @property
    def forward(self) -> int:
        """F."""
        h = self.hidden
        recurrent = 4 * h * h + (CELLS - 1) * 4 * h * 2 * h
        return self.on_inputs + self.rows * (recurrent + h * self.outputs)


def network_shapes(config: TrainConfig) -> list[Shape]:
    """Of the rules that are learned, from their parameters."""
    shapes = []
    for name, given in config.rules.by_name().items():
        if not isinstance(given, NetworkConfig):
            continue
        with torch.device("meta"):
            made: Any = given.make(Place(name, config.task, config.seed))
        inputs, outputs = made.lstm.W_x[0].shape[1], made.head.W.shape[0]
        rows = 1 if isinstance(made, FlattenedRule) else _coordinates(name, config.task)
        wired = made.wire.W.shape[0] if hasattr(made, "wire") else 0
        shapes.append(Shape(rows, inputs, given.hidden, outputs, wired))
    return shapes


def _coordinates(name: str, task: TaskConfig) -> int:
    """Weights of the optimizee, or entries of its generators."""
    shapes = layer_shapes(task)
    if name == "update":
        return sum(out * fan_in for out, fan_in in shapes)
    return sum(out**2 for out, _ in shapes[:-1])


def multiply_adds_forward(config: TrainConfig) -> int:
    """F of all networks together, for one trajectory."""
    return sum(shape.forward for shape in network_shapes(config))


def training_flop(config: TrainConfig) -> int:
    """2 (3 F - I) for each inner step of one trajectory, times the steps of a trajectory."""
    per_step = sum(2 * (3 * shape.forward - shape.on_inputs) for shape in network_shapes(config))
    return config.meta.steps * per_step


def evaluation_flop(config: TrainConfig) -> int:
    """2 F for each inner step of one trajectory, times the steps of a trajectory."""
    return config.meta.steps * 2 * multiply_adds_forward(config)
