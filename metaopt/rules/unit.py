"""Scaling of hidden units on mini-batches: one small LSTM for all units, a row for each.

    t_i = c_w B_i + c_g C_i + z_i,    (c, z) from m2(features of unit i, h_i)
    B_i = log(||w_read|| / ||w_make||),   C_i = log(||g_make|| / ||g_read||)

B moves a unit towards equal norms of what makes it and of what reads it, and C towards equal norms
of their gradients; the coefficients are means over the units of a symmetry, within
``LARGEST_BALANCE``, and z is the unit's own. Gradients are seen as the root of a running mean of
their squares, which moves by exp(-2 t) with the weights. This is the diagonal of a generator, all
of the general linear group that leaves the loss on any mini-batch (``symmetry.units``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.loss_statistics import FLOOR
from metaopt.network import Weights
from metaopt.rules.base import Proposal, Rule
from metaopt.rules.clock import CLOCK_FEATURES, clock_features
from metaopt.rules.directions import HEAD_BOUND
from metaopt.rules.lstm import LSTM, Head, State
from metaopt.tasks import Observation
from metaopt.units import MAKES, READS, Units

SQUARES_DECAY = 0.95
LARGEST_BALANCE = 0.25
"""Of the coefficients of B and C: t = B / 2 balances at once."""
LARGEST_LOG = 5.0

_BALANCES = 2
FEATURES = 2 * _BALANCES + 2 + CLOCK_FEATURES


class UnitScalingLSTM(Rule):
    """m2 on features of hidden units -> logarithms of the factors that they are scaled by.

    Args:
        hidden: size of the cells.
        scale: factor on the outputs of the head.
        free: factor on z.
        seed: of the initialisation.
        name: of the initialisation's stream.
    """

    def __init__(self, hidden: int, scale: float, free: float, seed: int, name: str) -> None:
        super().__init__()
        self.scale = scale
        self.free = free
        self.lstm = LSTM(FEATURES, hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, _BALANCES + 1, seed, f"{name}/head", bound=HEAD_BOUND)

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
        c = LARGEST_BALANCE * torch.tanh(units.means(z[:, :_BALANCES]))
        t = (c * balances).sum(1) + self.free * z[:, _BALANCES]
        return Proposal(generators=(t,)), cells | {"squares": squares, "count": count}

    def scaled(self, state: State, t: Tensor, log_factors: Weights) -> State:
        """Squares of gradients of what makes a unit over exp(2 t), of what reads it times that.

        Exact where those entries belong to no other unit; between three layers and more the other
        factors of an entry are left to the running mean.
        """
        both = torch.stack([t, -t], dim=1)
        return state | {"squares": state["squares"] * (-2 * both).exp()}


def _units(observation: Observation) -> Units:
    # ``UnitEngine.check`` has been there before.
    assert observation.units is not None
    return observation.units


def _of_units(units: Units, weights: Weights) -> Tensor:
    """Squared norms of what makes each unit and of what reads it, [B, 2, K]."""
    squares = tuple(W.square() for W in weights)
    return torch.stack([units.sums(squares, sign) for sign in (MAKES, READS)], dim=1)
