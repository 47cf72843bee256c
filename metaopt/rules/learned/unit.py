"""Scaling of hidden units on mini-batches: one small LSTM for all units, a row for each.

    t_i = c (B_i - b_i),    b_i = beta tanh((a (B_i - C_i) + z_i) / beta)
    B_i = log(||w_read|| / ||w_make||),   C_i = log(||g_make|| / ||g_read||)
    (c, a, z) from m2(features of unit i, h_i),   0 < c < 1/4,   0 < a < 1,   beta = 1/2

t = B / 2 would give what makes a unit and what reads it equal norms, t = C / 2 equal norms of their
gradients; B - C stays as it is under t. So each unit goes a part of the way to a point that lies
between both, but within beta of equal norms; c and a are means over the units of a symmetry, z is
the unit's own. A unit that nothing makes or nothing reads stays. Gradients are seen as the root of
a running mean of their squares, which moves by exp(-2 t) with the weights. This is the diagonal of
a generator, all of the general linear group that leaves the loss on any mini-batch
(``symmetry.units``).

**Bounded, whatever the network says, over any number of steps.** Let T be the sum of all t of a
run, and T* the point of the orbit at which all B are 0. All units are scaled at once, and a factor
of one moves the B of its neighbours, by no more than a mean of their T. So T -> T + c (B(T) - b)
brings no unit farther from T* than its neighbours were, as 1 - 2 c + c + c = 1, and what b adds is
held by the ends: in a chain of L hidden layers, of which inputs and outputs do not move,

    |T - T*| <= beta l (L + 1 - l) / 2    in layer l, once it is so,

whatever c, a and z are at each step. An increment of its own for each unit had no such bound: what
was learned for 1,000 steps carried weights of three layers and more to infinity within 3,000.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metaopt.base.fields import required
from metaopt.base.loss_statistics import FLOOR
from metaopt.base.network import Weights
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.learned.clock import CLOCK_FEATURES, clock_features
from metaopt.rules.learned.directions import HEAD_BOUND
from metaopt.rules.learned.lstm import LSTM, Head
from metaopt.rules.rule_config import FreeConfig, Place
from metaopt.symmetry.units import MAKES, READS, HiddenUnits
from metaopt.tasks.base import Observation
from metaopt.teleport.base import Need

SQUARES_DECAY = 0.95
LARGEST_SHARE = 0.25
"""The largest c. c = 1/2 balances a unit at once if its neighbours stay; 1/4 never overshoots."""
FIRST_SHARE = -3.0
"""The untrained c is ``LARGEST_SHARE`` times the sigmoid of this: a hundredth of the way a step."""
LARGEST_OFFSET = 0.5
"""beta: at most a factor of e^(1/2) between the norms of what makes and what reads a unit."""
LARGEST_LOG = 5.0
UNBOUNDED = ("0.1.0",)
"""Versions of this package in which the outputs were increments without a bound."""

_BALANCES = 2
FEATURES = 2 * _BALANCES + 2 + CLOCK_FEATURES


class UnitScalingLSTM(Rule):
    """m2 on features of hidden units -> logarithms of the factors that they are scaled by.

    Args:
        hidden: size of the cells.
        scale: factor on the outputs of the head.
        free: factor on z.
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
    """

    columns_are_units = True

    def __init__(self, hidden: int, scale: float, free: float, seed: int, name: str) -> None:
        super().__init__()
        self.scale = scale
        self.free = free
        self.lstm = LSTM(FEATURES, hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, 3, seed, f"{name}/head", bound=HEAD_BOUND)

    def initial_state(self, observation: Observation) -> State:
        """Zeros: h and c [B, hidden, K], squares [B, 2, K], count [B, 1, 1]."""
        units, W = _units(observation), observation.weights
        batch = W[0].shape[0]
        return self.lstm.initial_state(batch, units.count) | {
            "squares": W[0].new_zeros(batch, 2, units.count),
            "count": W[0].new_zeros(batch, 1, 1),
        }

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The diagonal t, as the one generator."""
        units, count = _units(observation), state["count"] + 1
        weights = _of_units(units, observation.weights)
        gradients = _of_units(units, observation.grads)
        squares = torch.lerp(gradients, state["squares"], SQUARES_DECAY)
        w = (weights + FLOOR).log() / 2
        g = (squares / (1 - SQUARES_DECAY**count) + FLOOR).log() / 2
        balances = torch.cat([w[:, 1:] - w[:, :1], g[:, :1] - g[:, 1:]], dim=1)
        balances = balances.clamp(-LARGEST_LOG, LARGEST_LOG)
        features = torch.cat(
            [
                balances,
                balances - units.means(balances),
                (w - units.means(w)).clamp(-LARGEST_LOG, LARGEST_LOG),
                clock_features(count).expand(-1, -1, units.count),
            ],
            dim=1,
        )
        h, cells = self.lstm(features, state)
        z = self.scale * self.head(h)
        share, between = units.means(z[:, :2]).unbind(1)
        B, C = balances.unbind(1)
        towards = torch.sigmoid(between) * (B - C) + self.free * z[:, 2]
        offset = LARGEST_OFFSET * torch.tanh(towards / LARGEST_OFFSET)
        t = LARGEST_SHARE * torch.sigmoid(share + FIRST_SHARE) * (B - offset)
        # What is 0 stays 0 under any factor: its other side would be scaled without end.
        t = torch.where((weights > 0).all(1), t, 0.0)
        return Proposal(generators=(t,)), cells | {"squares": squares, "count": count}

    def scaled(self, state: State, t: Tensor, log_factors: Weights) -> State:
        """Squares of gradients of what makes a unit over exp(2 t), of what reads it times that.

        Exact where those entries belong to no other unit; between three layers and more the other
        factors of an entry are left to the running mean.
        """
        both = torch.stack([t, -t], dim=1)
        return state | {"squares": state["squares"] * (-2 * both).exp()}


def _units(observation: Observation) -> HiddenUnits:
    # ``UnitEngine.check`` has been there before.
    assert observation.units is not None
    return observation.units


def _of_units(units: HiddenUnits, weights: Weights) -> Tensor:
    """Squared norms of what makes each unit and of what reads it, [B, 2, K]."""
    squares = tuple(W.square() for W in weights)
    return torch.stack([units.sums(squares, sign) for sign in (MAKES, READS)], dim=1)


class UnitConfig(FreeConfig):
    """m2 hidden unit by hidden unit."""

    knows_loss_alone = True
    generates_for = Need.UNITS
    kind: Literal["unit_lstm"] = required(
        "one LSTM for all hidden units, which are scaled one by one: for mini-batches"
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return UnitScalingLSTM(self.hidden, self.scale, self.free, place.seed, place.name)
