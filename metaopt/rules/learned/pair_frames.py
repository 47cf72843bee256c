"""The frames that linear pairs are in, as rules that move them keep them.

    A = F A_there,   B = B_there F^-1        F [k, k] for each pair

*There* is where training began: an engine is told the frame that a pair is in, and the one that it
is to be in, both counted from there (``teleport.pair_engine``).
"""

from __future__ import annotations

import torch

from metaopt.base.network import Weights
from metaopt.rules.base import Rule, State
from metaopt.symmetry.maps import GroupElement
from metaopt.symmetry.pairs import LinearPairs
from metaopt.tasks.base import Observation
from metaopt.teleport.base import MovesPairs

_FRAME = ("g", "g_inv")


class FramedPairs(Rule):
    """A rule that moves linear pairs, and keeps the frames that they are in."""

    def turned(self, state: State, move: MovesPairs, weights: Weights) -> State:
        """The frames, and what moves as gradients do, after pairs have moved."""
        new = super().turned(state, move, weights)
        for i, frame in enumerate(move.frames):
            new |= as_state(frame, i)
        return new


def pairs_in(observation: Observation) -> LinearPairs:
    """The linear pairs of the network."""
    # ``PairEngine.check`` has been there before.
    assert observation.pairs is not None
    return observation.pairs


def first_frames(observation: Observation) -> State:
    """F = I and F^-1 of all widths, each [B, pairs, k, k]."""
    W, found = observation.weights[0], State()
    for i, width in enumerate(pairs_in(observation).widths):
        eye = torch.eye(width.size, dtype=W.dtype, device=W.device)
        shape = (W.shape[0], width.count, width.size, width.size)
        # Two tensors: whoever writes into one of them in place writes into that one alone.
        found |= as_state(GroupElement(*(eye.expand(shape).clone() for _ in _FRAME)), i)
    return found


def frame_of(state: State, width: int) -> GroupElement:
    """F and F^-1 of the pairs of a width."""
    return GroupElement(*(state[f"{name}{width}"] for name in _FRAME))


def as_state(frame: GroupElement, width: int) -> State:
    """F and F^-1 by their names in the state."""
    return {f"{name}{width}": x for name, x in zip(_FRAME, frame, strict=True)}
