"""Teleports of linear pairs along multiples of I: how large the side that makes is.

    F' = c I,   log c = log(sqrt(k) / ||A||) + u_t + d,   d = head(h),   h = m2(features of pair, h)

||A|| is the Frobenius norm there, where training began: after the teleport the singular values of A
are exp(u_t + d) in root mean square, however large its factors were made. An update rule whose
steps have a size of their own then moves outputs by B's steps that many times as far, and by A's
as many times less. Untrained, exp(u_t) is 4 in the first three steps, since the gradient of A says
little while B is 0 or nearly so; then 1 + t / 200, so that A comes to rest before B does.

A multiple of I multiplies everything that is linear in gradients by one number, and leaves frames
and eigenvectors where they are. So the state of rules that keep squares of entries, in frames of
their own, follows it exactly. Pairs that lie on the same tensors (heads of attention) are heard as
one, by their mean squares, and so get one c; a pair that shares a tensor with something else stays.

Features are the same whatever multiple of I a pair is at: log ||A|| ||B||, log ||A|| ||G_A||
less log ||B|| ||G_B||, and the clock.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from metaopt.base.fields import required
from metaopt.base.loss_statistics import FLOOR
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.learned.clock import CLOCK_FEATURES, clock_features, fading
from metaopt.rules.learned.directions import HEAD_BOUND
from metaopt.rules.learned.lstm import LSTM, Head
from metaopt.rules.learned.pair_frames import (
    FramedPairs,
    as_state,
    first_frames,
    frame_of,
    pairs_in,
)
from metaopt.rules.rule_config import FadingConfig, Place
from metaopt.symmetry.maps import GroupElement
from metaopt.symmetry.pairs import Width
from metaopt.tasks.base import Observation
from metaopt.teleport.base import Need
from metaopt.teleport.optimizer_state import Kept

WAITS = 3
"""Steps in which A hardly moves."""
WAITING = 4.0
"""exp(u) in these steps."""
GROWS = 200
"""And after them exp(u) = 1 + t / GROWS."""
FEATURES = 2 + CLOCK_FEATURES
NO_SIZE = math.log(FLOOR) / 2 + 1
"""The logarithm of a size below which a side counts as 0; it is not made larger then."""
_CLAMP = 12.0


class PairSizeLSTM(FramedPairs):
    """m2 on features of linear pairs -> the size of the side that makes.

    Args:
        hidden: size of the cells.
        scale: factor on the output of the head.
        fades: steps after which what is learned counts half; None: it never does.
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
    """

    def __init__(self, hidden: int, scale: float, fades: int | None, seed: int, name: str) -> None:
        super().__init__()
        self.scale = scale
        self.fades = fades
        self.lstm = LSTM(FEATURES, hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, 1, seed, f"{name}/head", bound=HEAD_BOUND)

    def kept(self, name: str) -> Kept:
        """All belongs to the pairs together."""
        return Kept.ALL

    def initial_state(self, observation: Observation) -> State:
        """h, c [B, hidden, pairs] and the count [B, 1, 1]: 0; frames I."""
        batch = observation.weights[0].shape[0]
        return (
            self.lstm.initial_state(batch, pairs_in(observation).count)
            | {"count": observation.weights[0].new_zeros(batch, 1, 1)}
            | first_frames(observation)
        )

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The generators log c I of each width, [B, pairs, k, k]."""
        pairs, count = pairs_in(observation), state["count"] + 1
        of_sizes = [_log_sizes(w, observation) for w in pairs.widths]
        shown = torch.cat([_features(sizes) for sizes in of_sizes], dim=2)
        clock = clock_features(count).expand(-1, -1, shown.shape[2])
        h, cells = self.lstm(torch.cat([shown, clock], dim=1).detach(), state)
        z = untrained(count) + self.scale * fading(count, self.fades) * self.head(h)
        new: State = {"count": count}
        frames: list[GroupElement] = []
        generators: list[Tensor] = []
        each = z[:, 0].split([width.count for width in pairs.widths], dim=1)
        for i, (width, sizes, one) in enumerate(zip(pairs.widths, of_sizes, each, strict=True)):
            frame = frame_of(state, i)
            frames.append(frame)
            new |= as_state(frame, i)
            # As far as A is from its size now, from where the frame is now.
            now = frame.g[..., 0, 0].log()
            moves = pairs.alone[i] & (sizes[:, 0] > NO_SIZE)
            log_c = (one - sizes[:, 0] + now) * moves
            eye = torch.eye(width.size, dtype=one.dtype, device=one.device)
            generators.append(log_c[..., None, None] * eye)
        return Proposal(generators=tuple(generators), frames=tuple(frames)), cells | new


def untrained(count: Tensor) -> Tensor:
    """u at steps t = 1, 2, .. [B, 1, 1]."""
    return torch.where(count <= WAITS, math.log(WAITING), (count / GROWS).log1p())


def _log_sizes(width: Width, observation: Observation) -> Tensor:
    """log of ||A||, ||B||, ||G_A||, ||G_B|| over sqrt(k), alike for kin: [B, 4, pairs]."""
    of = [width.products(x) for x in (observation.weights, observation.grads)]
    traces = torch.cat([x.diagonal(dim1=-2, dim2=-1).mean(-1) for x in of], dim=1)
    return ((_alike(width, traces) + FLOOR).log() / 2).detach()


def _features(log_sizes: Tensor) -> Tensor:
    """[B, 4, pairs] -> [B, 2, pairs]."""
    A, B, of_A, of_B = log_sizes.split(1, dim=1)
    shown = torch.cat([A + B, A + of_A - B - of_B], dim=1)
    return shown.clamp(-_CLAMP, _CLAMP) / _CLAMP


def _alike(width: Width, x: Tensor) -> Tensor:
    """The mean over pairs on the same tensors, for each of them: [B, any, pairs]."""
    sums = torch.zeros_like(x).index_add(2, width.first, x)
    counts = torch.zeros_like(x[:1, :1]).index_add(2, width.first, torch.ones_like(x[:1, :1]))
    return (sums / counts.clamp(min=1)).index_select(2, width.first)


class PairSizeConfig(FadingConfig):
    """m2 pair by pair, one number each."""

    knows_loss_alone = True
    generates_for = Need.PAIRS
    generates_multiples = True
    kind: Literal["pair_size_lstm"] = required(
        "one LSTM for all linear pairs that makes one side larger and the other smaller: for "
        "update rules whose state follows no other element"
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return PairSizeLSTM(self.hidden, self.scale, self.fades, place.seed, place.name)
