"""Teleports of linear pairs on mini-batches: one small LSTM for all pairs, a row for each.

    F' = exp(T),   T = -s/2 (a_m log M + a_s log S + a_w log V) + s/2 a_o log O + a_x X
    (a_m, a_s, a_w, a_o, a_x) = head(h),   h = m2(features of the pair, h)

F' is the frame that the pair is moved to, by g = F' F^-1 out of the frame F that it is in; both
count from the weights that training began with (*there*: F = I). s = 1 at a step that serves the
side that reads, B, and -1 at one that serves A (``turns``). With what is served as *own* side, all
[k, k], as they would be there, and divided by their mean eigenvalue:

    M   momentum's product of the own side, m_B^T m_B: its log whitens the step to come
    S   running mean of the gradient's, G_B^T G_B: whitens gradients
    V   the other side's weights, A A^T: makes them orthonormal
    O   the own side's weights, B^T B: balances the pair if a_o = a_w
    X   the symmetric part of A m_A^T, at norm 1: where a step of the frame itself would lead

A step m in the frame F' is a step m F'^T F' there: with a_m = 1/2 momentum
becomes (m^T m)^(-1/2) m, as in Muon, with a_s = 1/2 it is whitened on that side as in Shampoo, with
a_w = 1 it is that of ScaledGD. Everything is a function of k x k products that turn with the frame,
Q X Q^T under a rotation Q: the teleports are the same in each frame, and the rule fits any rank,
width and number of pairs. B = 0 has no direction, log O is 0 there.

References:
    Gupta, Koren and Singer, Shampoo (2018); Tong, Ma and Chi, Accelerating ill-conditioned low-rank
    matrix estimation via scaled gradient descent (2021); Jordan et al., Muon (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from metaopt.base.fields import required
from metaopt.base.loss_statistics import FLOOR
from metaopt.rules.base import Proposal, Rule, State, flat_gradient
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
from metaopt.rules.learned.spectral import logarithm
from metaopt.rules.learned.turns import begins, served
from metaopt.rules.rule_config import FadingConfig, FreeConfig, Place, TurnsConfig
from metaopt.symmetry.pairs import MAKES, READS, Width, turned
from metaopt.tasks.base import Observation
from metaopt.teleport.base import Need
from metaopt.teleport.optimizer_state import Kept

MOMENTUM_DECAY = 0.5
PRODUCTS_DECAY = 0.9
EPSILON = 1e-3
"""Added to eigenvalues whose mean is 1: directions with less are not blown up any further."""
UNTRAINED = (0.2, 0.0, 0.2, 0.0)
"""Untrained coefficients of the four logarithms."""
LARGEST = 1.5
"""The largest coefficient."""
CONSTANT = 1e-12

_LOGS = len(UNTRAINED)
FEATURES = _LOGS + _LOGS * (_LOGS - 1) // 2 + 4 + 1 + CLOCK_FEATURES


class PairLSTM(FramedPairs):
    """m2 on features of linear pairs -> their generators.

    Args:
        hidden: size of the cells.
        scale: factor on the outputs of the head.
        free: factor on that of X.
        fades: steps after which generators are half of what the network says; None: they never are.
        every: steps of a turn: pairs move at the first of them, and stay for the rest.
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
    """

    def __init__(
        self,
        hidden: int,
        scale: float,
        free: float,
        fades: int | None,
        every: int,
        seed: int,
        name: str,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.free = free
        self.fades = fades
        self.every = every
        self.lstm = LSTM(FEATURES, hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, _LOGS + 1, seed, f"{name}/head", bound=HEAD_BOUND)

    def kept(self, name: str) -> Kept:
        """The momentum belongs to entries, all else to the pairs together."""
        return Kept.GRADIENTS if name == "m" else Kept.ALL

    def initial_state(self, observation: Observation) -> State:
        """h, c [B, hidden, pairs], m [B, 1, P], s [B, 2, pairs, k, k] of each width: 0; frames I.

        The running means s are kept as they would be where training began. Where a turn has more
        than one step, generators t [B, pairs, k, k] of each width are kept for its rest.
        """
        pairs, W = pairs_in(observation), observation.weights
        batch = W[0].shape[0]
        products: State = {}
        for i, width in enumerate(pairs.widths):
            shape = (width.count, width.size, width.size)
            products[f"s{i}"] = W[0].new_zeros(batch, 2, *shape)
            if self.every > 1:
                products[f"t{i}"] = W[0].new_zeros(batch, *shape)
        return (
            self.lstm.initial_state(batch, pairs.count)
            | {"m": W[0].new_zeros(batch, 1, sum(w[0].numel() for w in W))}
            | {"count": W[0].new_zeros(batch, 1, 1)}
            | products
            | first_frames(observation)
        )

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The generators of each width, [B, pairs, k, k]."""
        pairs, W = pairs_in(observation), observation.weights
        count = state["count"] + 1
        m = torch.lerp(flat_gradient(observation)[:, None], state["m"], MOMENTUM_DECAY)
        parts = m.split([w[0].numel() for w in W], dim=2)
        means = [part.reshape(w.shape) for part, w in zip(parts, W, strict=True)]
        sign = -served(count, self.every)[..., None]
        new: State = {"m": m, "count": count}
        logs, frees, features, frames = [], [], [], []
        for i, width in enumerate(pairs.widths):
            frame = frame_of(state, i)
            frames.append(frame)
            new |= as_state(frame, i)
            # Rows of weights there are those here times the transposed inverse of the frame.
            of_weights = turned(width.products(W), frame.g_inv.mT, frame.g)
            of_means = turned(width.products(means), frame.g, frame.g_inv.mT)
            of_grads = turned(width.products(observation.grads), frame.g, frame.g_inv.mT)
            products = torch.lerp(of_grads, state[f"s{i}"], PRODUCTS_DECAY)
            new[f"s{i}"] = products
            own = [_side(x, sign) for x in (of_means, products, of_weights, of_weights)]
            own[2] = _side(of_weights, -sign)
            # Constants to the meta-gradient, as features are: through logarithms of momenta, step
            # after step, that of second order explodes.
            log = logarithm(torch.stack([_relative(x) for x in own], dim=1))
            free = frame.g_inv @ width.products(W, means)[:, MAKES] @ frame.g
            free = (free + free.mT).detach()
            norm = (free.square().sum(dim=(-2, -1), keepdim=True) + CONSTANT).sqrt()
            logs.append(log)
            frees.append(free / norm)
            sizes = _log_sizes(width, of_weights, of_means)
            features.append(torch.cat([_shapes(log), sizes], dim=1))
        shown = torch.cat(features, dim=2)
        turn = torch.cat([served(count, self.every), clock_features(count)], dim=1)
        shown = torch.cat([shown, turn.expand(-1, -1, shown.shape[2])], dim=1)
        h, cells = self.lstm(shown.detach(), state)
        z = self.scale * self.head(h)
        fade = fading(count, self.fades)
        untrained = torch.cat([z.new_full((1, 1, 1), a) for a in UNTRAINED], dim=1)
        a = (untrained + z[:, :_LOGS]).clamp(-LARGEST, LARGEST)
        f = self.free * torch.tanh(z[:, _LOGS])
        generators = _generators(sign, fade * a, fade[:, 0] * f, logs, frees)
        if self.every > 1:
            # The frame that a pair is in already: g is I to rounding.
            first = begins(count, self.every)[..., None]
            generators = tuple(
                torch.where(first, T, state[f"t{i}"]) for i, T in enumerate(generators)
            )
            new |= {f"t{i}": T for i, T in enumerate(generators)}
        return Proposal(generators=generators, frames=tuple(frames)), cells | new


def _generators(
    sign: Tensor, a: Tensor, f: Tensor, logs: Sequence[Tensor], frees: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """T of each width from coefficients [B, 4, pairs of all widths] and [B, pairs]."""
    counts = [free.shape[1] for free in frees]
    found = []
    for own, of_free, log, free in zip(
        a.split(counts, dim=2), f.split(counts, dim=1), logs, frees, strict=True
    ):
        away, towards = own[:, :3, :, None, None] * log[:, :3], own[:, 3, :, None, None] * log[:, 3]
        T = sign / 2 * (towards - away.sum(1))
        found.append(T + of_free[..., None, None] * free)
    return tuple(found)


def _side(products: Tensor, sign: Tensor) -> Tensor:
    """Of [B, 2, pairs, k, k] the side that reads where the sign [B, 1, 1, 1] is 1."""
    return torch.where(sign > 0, products[:, READS], products[:, MAKES])


def _relative(X: Tensor) -> Tensor:
    """X over its mean eigenvalue, plus ``EPSILON``; a multiple of I where X is 0."""
    eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    mean = X.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    present = mean > FLOOR
    scaled = X / torch.where(present, mean, 1.0)
    return torch.where(present, scaled + EPSILON * eye, eye)


def _shapes(log: Tensor) -> Tensor:
    """How far logarithms [B, 4, pairs, k, k] are from 0, and their cosines: [B, 4 + 6, pairs]."""
    k = log.shape[-1]
    gram = torch.einsum("bipxy,bjpxy->bpij", log, log) / k
    norm = (gram.diagonal(dim1=-2, dim2=-1) + CONSTANT).sqrt()
    cosines = gram / (norm[..., :, None] * norm[..., None, :])
    upper = [cosines[..., i, j] for i in range(_LOGS) for j in range(i + 1, _LOGS)]
    return torch.cat([norm.permute(0, 2, 1) / 3, torch.stack(upper, dim=1)], dim=1)


def _log_sizes(width: Width, of_weights: Tensor, of_means: Tensor) -> Tensor:
    """log norms of both sides' weights, and of their momenta against each other: [B, 4, pairs]."""
    traces = torch.stack([of_weights, of_means], dim=1).diagonal(dim1=-2, dim2=-1).mean(-1)
    logs = (traces + FLOOR).log() / 2
    weights, means = logs.unbind(1)
    means = means - means.mean(dim=(1, 2), keepdim=True)
    return torch.cat([weights, means], dim=1).clamp(-6, 6) / 3


class PairConfig(FreeConfig, FadingConfig, TurnsConfig):
    """m2 pair by pair."""

    knows_loss_alone = True
    generates_for = Need.PAIRS
    kind: Literal["pair_lstm"] = required(
        "one LSTM for all linear pairs (LoRA adapters, factorised layers, heads of attention), "
        "whose two sides it serves in turn: for mini-batches"
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        own = (self.hidden, self.scale, self.free, self.fades, self.every)
        return PairLSTM(*own, place.seed, place.name)
