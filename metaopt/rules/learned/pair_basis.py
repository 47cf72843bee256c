"""Teleports of linear pairs to the basis in which gradients' second moments are nearly independent.

    g = c Q^T,   S_A / tr S_A + S_B / tr S_B = Q L Q^T                       L the eigenvalues
    log c = log(sqrt(k) / ||A||) + u_t + d,   d = head(h),   h = m2(features of the pair, h)

S_A and S_B are running means of G_A G_A^T and G_B^T G_B, where the pair is, and Q rotates both
sides: an update rule that divides by the sizes of entries, as Adam does, then is on that side what
SOAP is. ||A|| is the Frobenius norm: after the teleport the singular values of A are exp(u_t + d)
in root mean square, however large its factors were made. Untrained, exp(u_t) is 4 in the first
three steps, since the gradient of A says little while B is 0 or nearly so, and then 1: a rule whose
steps have a size of their own moves outputs by B's steps that many times as far, and by A's as many
times less.

Q and c are the same whatever rotation or multiple of I a pair is at, but for the order and the
signs of the eigenvectors, which Adam does not see; so is what the network computes after each step.
A pair moves at each of the first steps, and at every m-th after them. Only pairs move that are at
most ``WIDEST`` wide, and only those have c that have their tensors to themselves. Pairs that lie on
the same tensors (heads of attention) have one c, and are heard as one, by their mean squares.

Features: log ||A|| ||B||, log ||A|| ||G_A|| less log ||B|| ||G_B||, and the clock.

Reference: Vyas et al., SOAP (2024), arXiv 2409.11321.
"""

from __future__ import annotations

import math
import warnings
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaopt.base.fields import described, required
from metaopt.base.loss_statistics import FLOOR
from metaopt.base.network import Weights
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.learned.clock import CLOCK_FEATURES, clock_features, fading
from metaopt.rules.learned.directions import HEAD_BOUND
from metaopt.rules.learned.eigen_means import Memory
from metaopt.rules.learned.lstm import LSTM, Head
from metaopt.rules.learned.pair_frames import pairs_in
from metaopt.rules.learned.pair_moments import WIDEST
from metaopt.rules.learned.spectral import eigenvectors
from metaopt.rules.rule_config import FadingConfig, Place
from metaopt.symmetry.maps import GroupElement
from metaopt.symmetry.pairs import LinearPairs, Width
from metaopt.tasks.base import Observation
from metaopt.teleport.base import MovesPairs, Need
from metaopt.teleport.optimizer_state import Kept

REMEMBERS = Memory(5.0)
"""Products of gradients: those of about the last fifth of the way."""
ALWAYS = 50
"""The first steps, at each of which pairs move."""
WAITS = 3
"""Steps in which A hardly moves."""
WAITING = 4.0
"""exp(u) in these steps."""
FEATURES = 2 + CLOCK_FEATURES
NO_SIZE = math.log(FLOOR) / 2 + 1
"""The logarithm of a size below which a side counts as 0; it is not made larger then."""
_CLAMP = 12.0


class PairBasisLSTM(Rule):
    """m2 on features of linear pairs -> the size of the side that makes, in their eigenbasis.

    Args:
        hidden: size of the cells.
        scale: factor on the output of the head.
        fades: steps after which what is learned counts half; None: it never does.
        every: m.
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
    """

    def __init__(
        self, hidden: int, scale: float, fades: int | None, every: int, seed: int, name: str
    ) -> None:
        super().__init__()
        self.scale = scale
        self.fades = fades
        self.every = every
        self.lstm = LSTM(FEATURES, hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, 1, seed, f"{name}/head", bound=HEAD_BOUND)

    def kept(self, name: str) -> Kept:
        """All belongs to the pairs together."""
        return Kept.ALL

    def initial_state(self, observation: Observation) -> State:
        """h, c [B, hidden, pairs], the count [B, 1, 1], S [B, 2, pairs, k, k] of each width: 0."""
        pairs, W = pairs_in(observation), observation.weights[0]
        widest = max(width.size for width in pairs.widths)
        if widest > WIDEST:
            warnings.warn(
                f"linear pairs of width {widest} stay where they are, since second moments that "
                f"follow them would take {widest} times their memory: for teleports take a rank "
                f"of at most {WIDEST}",
                stacklevel=2,
            )
        state = self.lstm.initial_state(W.shape[0], pairs.count)
        state["count"] = W.new_zeros(W.shape[0], 1, 1)
        for i, width in _moving(pairs):
            state[f"s{i}"] = W.new_zeros(W.shape[0], 2, width.count, width.size, width.size)
        return state

    def turned(self, state: State, move: MovesPairs, weights: Weights) -> State:
        """S after pairs have moved."""
        moved = {f"s{i}": move.products(i, state[f"s{i}"]) for i, _ in _moving(move.pairs)}
        return state | moved

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The elements of each width, [B, pairs, k, k]; none at steps between teleports."""
        pairs, count = pairs_in(observation), state["count"] + 1
        of_sizes = [_log_sizes(w, observation) for w in pairs.widths]
        shown = torch.cat([_features(sizes) for sizes in of_sizes], dim=2)
        clock = clock_features(count).expand(-1, -1, shown.shape[2])
        h, cells = self.lstm(torch.cat([shown, clock], dim=1).detach(), state)
        new: State = {"count": count}
        step = int(count.flatten()[0])
        for i, width in _moving(pairs):
            products = width.products(observation.grads).detach()
            new[f"s{i}"] = torch.lerp(products, state[f"s{i}"], REMEMBERS.decay(step))
        if not self._moves_at(step):
            return Proposal(), cells | new
        z = untrained(count) + self.scale * fading(count, self.fades) * self.head(h)
        elements: list[GroupElement | None] = []
        each = z[:, 0].split([width.count for width in pairs.widths], dim=1)
        for i, (width, sizes, one) in enumerate(zip(pairs.widths, of_sizes, each, strict=True)):
            if width.size > WIDEST:
                elements.append(None)
                continue
            sized = pairs.alone[i] & (sizes[:, 0] > NO_SIZE)
            c = ((one - sizes[:, 0]) * sized).exp()[..., None, None]
            Q = _basis(new[f"s{i}"])
            elements.append(GroupElement(c * Q.mT, Q / c))
        moves = any(element is not None for element in elements)
        return Proposal(elements=tuple(elements) if moves else None), cells | new

    def _moves_at(self, step: int) -> bool:
        return step <= ALWAYS or step % self.every == 0


def untrained(count: Tensor) -> Tensor:
    """u at steps t = 1, 2, .. [B, 1, 1]."""
    return torch.where(count <= WAITS, math.log(WAITING), 0.0)


def _moving(pairs: LinearPairs) -> list[tuple[int, Width]]:
    """The widths of pairs that move, with their numbers."""
    return [(i, width) for i, width in enumerate(pairs.widths) if width.size <= WIDEST]


def _basis(S: Tensor) -> Tensor:
    """Q of the sums of products [B, 2, pairs, k, k], as near to I as signs allow.

    A constant: the gradient of eigenvectors is infinite where two eigenvalues are equal.
    """
    S = S.detach()
    sizes = S.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    Q = eigenvectors((S / sizes.clamp(min=torch.finfo(S.dtype).tiny)).sum(1))
    sign = torch.where(Q.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return Q * sign[..., None, :]


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


class PairBasisConfig(FadingConfig):
    """m2 pair by pair, one number each."""

    knows_loss_alone = True
    generates_for = Need.PAIRS
    generates_similarities = True
    kind: Literal["pair_basis_lstm"] = required(
        "one LSTM for all linear pairs that moves them to the eigenbasis of their gradients' "
        "second moments, and says how large one side is: for rules.update.pairs: moved"
    )
    every: Annotated[int, Field(ge=1)] = described(
        5, f"steps from one teleport to the next, after the first {ALWAYS}, which have one each"
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return PairBasisLSTM(
            self.hidden, self.scale, self.fades, self.every, place.seed, place.name
        )
