"""How much arithmetic a step takes, counted from the shapes of the networks.

A network reads ``inputs`` features on ``rows`` rows, has L cells of size h and a head, and where
features are wired (``basis: sized``) another one on them, where step sizes are learned one on the
mean over rows (``once``):

    I = rows inputs (4 h + wired)                           multiply-adds on the inputs, forward
    R = rows L 4 h h                                        on the cells' own outputs before
    F = I + R + rows ((L - 1) 4 h h + h outputs) + h once   all of them

Backward, each multiply-add costs one for the weight's gradient and one for the gradient of what it
was multiplied with. The latter is not needed of the inputs under first order; and in the first step
of each window of K neither of the inputs nor of the cells' outputs before, which no rule of this
window has had a part in. A step of meta-training takes 2 (3 F - I - R / K) floating-point
operations under first order, 2 (3 F - (I + R) / K) under second order, one of evaluation 2 F. For
the paper's shapes (20 by 20, hidden 300; first order) F = 4.44 M and I = 1.92 M with update and
teleport: 22.5 MFLOP a step, 2.25 GFLOP a trajectory of 100 steps; 1.16 with the update alone. For
the coordinate-wise pair (hidden 20, on 800 weights and 400 generator entries; second order) F =
6.68 M and I = 0.84 M: 3.9 GFLOP. Element-wise work, features, the optimizee and the teleport are
not counted.
"""

from __future__ import annotations

import math
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
    once: int = 0  # outputs of the head on one row, for all of them

    @property
    def on_inputs(self) -> int:
        """I."""
        return self.rows * self.inputs * (4 * self.hidden + self.wired)

    @property
    def recurrent(self) -> int:
        """R."""
        return self.rows * CELLS * 4 * self.hidden**2

    @property
    def forward(self) -> int:
        """F."""
        above = (CELLS - 1) * 4 * self.hidden**2
        on_cells = self.rows * (above + self.hidden * self.outputs) + self.hidden * self.once
        return self.on_inputs + self.recurrent + on_cells


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
        wired, once = (
            getattr(made, head).W.shape[0] if hasattr(made, head) else 0
            for head in ("wire", "step_head")
        )
        shapes.append(Shape(rows, inputs, given.hidden, outputs, wired, once))
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
    """2 (3 F - I - R / K), or of I a K-th as well, for each inner step of one trajectory."""
    meta, shapes = config.meta, network_shapes(config)
    windows = math.ceil(meta.steps / meta.unroll)
    all_three = 3 * meta.steps * sum(shape.forward for shape in shapes)
    of_inputs = meta.steps if meta.order == 1 else windows
    spared = sum(of_inputs * shape.on_inputs + windows * shape.recurrent for shape in shapes)
    return 2 * (all_three - spared)


def evaluation_flop(config: TrainConfig) -> int:
    """2 F for each inner step of one trajectory, times the steps of a trajectory."""
    return config.meta.steps * 2 * multiply_adds_forward(config)
