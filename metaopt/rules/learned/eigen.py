"""The layer-wise rule for mini-batches: directions in eigenbases, and averaged iterates.

    f_l = -s_l b_l (Q_L (sum_r a_l^r d_l^r) Q_R^T + r_l W_l)
    x' = x + c_l (z + f - x),   c_l = p_l / (t + p_l)                        (``averaging``)
    b_l = 1 / sqrt(M max(out, rest))  (matrices),   0.03 / sqrt(M)  (vectors)
    (s_l, p_l, r_l, a_l) = head(h_l),   h_l = m1(statistics of parameter l, mean statistics, h_l)

d^r are the rows of ``directions`` (``eigen_steps``), made of running means at some decays in the
frame Q_L, Q_R of SOAP (``eigen_frames``), M the number of matrices. A vector has no frame:
there the first direction is Adam's. The sizes b_l are such that how far outputs go in a step
depends neither on width nor on depth.

Untrained, half of a step is Adam's and half is orthogonal, of length s = 0.5 / (1 + t / 100), and
the average is one over about the last eighth of the way. Told how many steps there will be, s falls
to 0 over their second half, and the average is one over the last sixteenth. The network sees no
entries: what it says of a parameter are the size of its step, the mixture of directions, the decay
of its weights, and how fast they are averaged. Features are those of the layer-wise rule
(``layer``), how far fast iterates are from what is trained, and the share of the steps that is
left, where it is told.

References:
    Vyas et al., SOAP (2024), arXiv 2409.11321. Defazio et al., The road less scheduled (2024),
    arXiv 2405.15682. Jordan et al., Muon (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.rules import averaging
from metaopt.rules.averaging import AHEAD, Averaging
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.learned import eigen_frames, pair_moments
from metaopt.rules.learned.clock import (
    CLOCK_FEATURES,
    LEFT_FEATURES,
    clock_features,
    fading,
    left_features,
)
from metaopt.rules.learned.directions import HEAD_BOUND
from metaopt.rules.learned.eigen_means import Memory, Seen, caught_up, look
from metaopt.rules.learned.eigen_steps import DIRECTIONS, Direction
from metaopt.rules.learned.layer import grams, hear, mean_over, mean_squares, statistics
from metaopt.rules.learned.lstm import LSTM, Head
from metaopt.rules.learned.matrix_steps import TINY
from metaopt.rules.learned.running import shrinking
from metaopt.tasks.base import Hidden, Observation
from metaopt.teleport.base import MovesPairs
from metaopt.teleport.optimizer_state import Kept

VECTOR_SIZE = 0.03
"""Entries of a step of a vector that gradients agree on, divided as those of matrices are."""
LENGTH = 0.5
"""s of the untrained rule, before it falls."""
FALLS_AFTER = 100
"""s = LENGTH / (1 + t / FALLS_AFTER)."""
ENDS_FROM = 0.5
"""The share of the steps that is left when s begins to fall to 0, where that share is told."""
AVERAGED = 8.0
"""p of the untrained rule."""
TOLD_AVERAGED = 16.0
"""And where it is told how many steps there will be: steps that end need less averaging."""
LOG_SIZE_BOUNDS = (-6.0, 3.0)
LOG_PULL_BOUNDS = (-2.0, 4.0)
LOG_DECAY_BOUNDS = (-3.0, 2.0)


def features(means: int) -> int:
    """How many the network hears of a parameter and of all, with so many running means."""
    return 2 * ((means + 1) + means + 3 + 1 + CLOCK_FEATURES + LEFT_FEATURES + 2)


class EigenUpdateLSTM(Rule):
    """m1 on statistics of whole parameters -> the coefficients of their updates.

    Args:
        hidden: size of the cells.
        scale: factor on the outputs of the head.
        directions: what steps are mixed of, by name.
        fades: steps after which what is learned counts half; None: it never does.
        weight_decay: of matrices, in units of s, before the network says more or less.
        largest: the longest side of a matrix that has a frame of its own.
        decays: those of the running means of the gradient, the fastest first.
        memory: how long squares of the gradient are remembered.
        follows: whether linear pairs may be rotated: their sides then have no frames of their own.
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
    """

    def __init__(
        self,
        hidden: int,
        scale: float,
        directions: Sequence[str],
        fades: int | None,
        weight_decay: float,
        largest: int,
        decays: Sequence[float],
        memory: Memory,
        follows: bool,
        seed: int,
        name: str,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.directions: list[Direction] = [DIRECTIONS[one]() for one in directions]
        self.decays = tuple(decays)
        self.untrained = _shares(self.directions, len(self.decays))
        self.fades = fades
        self.weight_decay = weight_decay
        self.largest = largest
        self.memory = memory
        self.follows = follows
        self.lstm = LSTM(features(len(self.decays)), hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, 3 + len(self.untrained), seed, f"{name}/head", bound=HEAD_BOUND)

    @property
    def reads(self) -> Hidden:
        """The loss and the share of the steps that is left, if they are known."""
        return frozenset({"loss", "left"})

    def kept(self, name: str) -> Kept:
        """Means belong to entries, in a frame; frames to sides; all else to whole parameters."""
        if pair_moments.is_kept(name):
            return Kept.ALL
        framed = {"m": Kept.FRAMED, "v": Kept.FRAMED, AHEAD: Kept.FRAMED}
        return (framed | dict.fromkeys(eigen_frames.NUMBERS, Kept.SIDES)).get(name, Kept.TENSORS)

    def does_without(self, name: str) -> bool:
        """Second moments of pairs: they begin where they are missing, or those of other pairs."""
        return pair_moments.is_kept(name)

    def sides(self, name: str, shape: torch.Size) -> int:
        """Numbers that are kept of a matrix's frames, or of the products that they are made of."""
        return eigen_frames.columns(name, shape[0], shape[1], self.largest)

    def turned(self, state: State, move: MovesPairs, weights: Weights) -> State:
        """All that is kept, after pairs have moved by rotations times c.

        Means move as gradients do, averages as weights, squares as their own second moments, and
        products of the other sides by c^-2 or c^2. Frames stay. Other elements are refused before
        (``EigenConfig``).
        """
        sizes = [w[0].numel() for w in weights]
        shapes = [(w.shape[1], w.shape[2]) for w in weights]
        numbers = torch.cat([state["count"][0, 0], state[pair_moments.SEEN][0, 0]])
        *counts, seen = (int(number) for number in numbers.tolist())
        state = caught_up(move.pairs, state, counts, seen, shapes, self.largest)
        second = pair_moments.moved(move, pair_moments.within(state))
        squares = [x.view_as(w) for x, w in zip(state["v"].split(sizes, 2), weights, strict=True)]
        v = pair_moments.written(move.pairs, second, squares)
        by = move.squares_of_gradients(len(weights)).split([1] * len(weights), dim=2)
        sides = [self.sides("products", w.shape[1:]) for w in weights]
        squared = [x.expand(-1, -1, n) for x, n in zip(by, sides, strict=True)]
        return (
            state
            | second
            | {
                "m": move.rows_of_gradients(state["m"], weights),
                "v": torch.cat([x.flatten(1) for x in v], dim=1)[:, None],
                "products": state["products"] * torch.cat(squared, dim=2),
                AHEAD: move.rows_of_weights(state[AHEAD], weights),
            }
        )

    def evaluated(self, weights: Weights, state: State) -> Weights:
        """x, the averages."""
        return averaging.averages(weights, state[AHEAD])

    def trained(self, averaged: Weights, state: State) -> Weights:
        """y, where gradients are taken."""
        return averaging.between(averaged, state[AHEAD])

    def initial_state(self, observation: Observation) -> State:
        """Zeros: h and c [B, hidden, L]; numbers [B, 1, L]; v and ahead [B, 1, P]; m [B, n, P].

        n is the number of decays. Products of sides, packed, are [B, 1, F], frames [B, 1, F'].
        """
        W = observation.weights
        batch, entries = W[0].shape[0], sum(w[0].numel() for w in W)
        numbers = {name: W[0].new_zeros(batch, 1, len(W)) for name in ("count", "loss", "heard")}
        means = {"m": W[0].new_zeros(batch, len(self.decays), entries)}
        squares = {"v": W[0].new_zeros(batch, 1, entries)}
        sides = {n: sum(self.sides(n, w.shape[1:]) for w in W) for n in eigen_frames.NUMBERS}
        kept = {name: W[0].new_zeros(batch, 1, columns) for name, columns in sides.items()}
        kept[AHEAD] = W[0].new_zeros(batch, 1, entries)
        if self.follows and observation.pairs is not None:
            kept |= pair_moments.initial(observation.pairs, W)
        return self.lstm.initial_state(batch, len(W)) | numbers | means | squares | kept

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f of the fast iterates, and how fast these are averaged."""
        W, grads = observation.weights, observation.grads
        sizes = [w[0].numel() for w in W]
        count = state["count"] + 1
        seen = look(observation, state, count, self.decays, self.memory, self.largest)
        base, vector, entries = _of_shapes(tuple(seen.means.shapes), W[0].dtype, W[0].device)
        loss_features, heard = hear(observation.loss, state)
        gram = grams(seen.means.adam, sizes, entries)
        squares = mean_squares(W, entries)
        spread = mean_squares(state[AHEAD].split_with_sizes(sizes, dim=2), entries)
        own_features = torch.cat(
            [
                statistics(gram, squares, seen.gain, base),
                vector.expand_as(count),
                ((spread + TINY).sqrt() / base).log1p(),
                clock_features(count),
                left_features(observation.left, count),
                loss_features,
            ],
            dim=1,
        )
        moves = gram[:, -1:, -1] > 0
        of_all = mean_over(own_features, moves, moves.sum(2, keepdim=True))
        heard_of = torch.cat([own_features, of_all.expand_as(own_features)], dim=1)
        h, cells = self.lstm(heard_of, state)

        z = self.scale * fading(count, self.fades) * self.head(h)
        log_size, log_pull, log_decay = z[:, :3].chunk(3, dim=1)
        length = log_size.clamp(*LOG_SIZE_BOUNDS).exp() * _untrained_length(count, observation.left)
        share = AVERAGED if observation.left is None else TOLD_AVERAGED
        averaged = share * log_pull.clamp(*LOG_PULL_BOUNDS).exp()
        decay = -self.weight_decay * length * log_decay.clamp(*LOG_DECAY_BOUNDS).exp()
        logs = own_features[:, : len(self.decays) + 1]
        moved = self._steps(seen, z[:, 3:], -base * length, logs)
        shrunk = []
        for i, (w, g, by) in enumerate(
            zip(W, grads, decay.split_with_sizes([1] * len(W), dim=2), strict=True)
        ):
            if w.shape[2] > 1:
                shrunk.append(shrinking(w, g, by))
                moved[i] = moved[i] + shrunk[i]
            else:
                shrunk.append(torch.zeros_like(w))
        proposal = Proposal(
            updates=tuple(moved),
            decays=tuple(shrunk),
            averaging=Averaging(state[AHEAD], averaged / (count + averaged)),
        )
        kept = {"count": count, "m": seen.m, "v": seen.v, AHEAD: state[AHEAD]}
        sides = {"products": seen.frames.products, "frames": seen.frames.frames}
        return proposal, cells | heard | kept | sides | seen.second

    def _steps(self, seen: Seen, z: Tensor, length: Tensor, logs: Tensor) -> list[Tensor]:
        """-b s Q_L (sum_r a^r d^r) Q_R^T of each parameter, [B, out, rest].

        Args:
            seen: what directions are made of.
            z: what the network adds to the shares of rows, [B, rows, L].
            length: -b s, [B, 1, L].
            logs: the logarithms of the sizes of the rows of Adam, [B, n + 1, L].
        """
        means = len(self.decays)
        shares = length * (z + z.new_tensor(self.untrained)[:, None])
        rows = [len(direction.untrained(means)) for direction in self.directions]
        sums = None
        for direction, share in zip(
            self.directions, shares.split_with_sizes(rows, dim=1), strict=True
        ):
            follows = direction.follows(means)
            by = seen.gain if follows is None else logs[:, follows, None].exp()
            sums = direction.add(sums, seen.means, (share * by).mT.chunk(share.shape[2], dim=1))
        assert sums is not None
        each = zip(seen.frames.each, sums, strict=True)
        return [eigen_frames.out_of(frame, step) for frame, step in each]


def _untrained_length(count: Tensor, left: Tensor | None) -> Tensor:
    """s at counts t >= 1, [B, 1, L].

    Args:
        count: t, [B, 1, L].
        left: the share of the steps that is left, [B]; None where nobody says.
    """
    length = LENGTH / (1 + count / FALLS_AFTER)
    return length if left is None else length * (left / ENDS_FROM).clamp(max=1)[:, None, None]


@lru_cache(maxsize=64)
def _of_shapes(
    shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """b, 1 for parameters of one column, and the numbers of entries, each [1, 1, L].

    They are made once for each network: numbers of the host would have to be copied to the device.
    """
    share = max(1, sum(min(shape) > 1 for shape in shapes)) ** -0.5
    sizes = [share * (max(s) ** -0.5 if min(s) > 1 else VECTOR_SIZE) for s in shapes]
    rows = [sizes, [float(rest == 1) for _, rest in shapes], [out * rest for out, rest in shapes]]
    # Kept beyond this call, they must be fit for meta-gradients wherever they are asked for first.
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=dtype, device=device)[None].chunk(3, dim=1)


def _shares(directions: Sequence[Direction], means: int) -> list[float]:
    """Those of the untrained mixture, of sum 1."""
    shares = [share for direction in directions for share in direction.untrained(means)]
    total = sum(shares)
    return [share / total if total else 1 / len(shares) for share in shares]
