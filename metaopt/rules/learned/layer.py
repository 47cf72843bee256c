"""The layer-wise rule: one small LSTM for all parameters of a model, a row for each.

    f_l = -s_l ((sum_d a_l^d m_l^d + a_l^g G_l) / root_l + a_l^w [G_l != 0] W_l)
    (s_l, a_l) = head(h_l),   h_l = m1(statistics of parameter l, mean statistics of all, h_l)

with m^d running means of the gradient at the decays ``DECAYS`` and root^2 that of its square, both
corrected for their start as in Adam; where that is within rounding of what others have (the bias
before a BatchNorm) root is larger, and the step small. The network sees no entries: what it says of
a parameter are the size of its step, the mixture of gradients old and new, and the decay of its
weights. So a step costs some ten times Adam's, not a hundred, its state is four numbers an entry,
and the same rule fits parameters of any shape. Its features need mini-batches' gradients alone; the
loss is one more where it is known.

That decay is *learned*: no ``weight_decay`` of an optimizer asks for it (``Proposal.decays`` tells
it apart). It acts with the gradient: what this step has no gradient for, such as the rows of an
embedding that were not looked up, does not shrink. *All* above are the parameters that move:
those without a gradient, frozen or not used, are no part of any statistic.

Untrained, it is a step of the fast and the slow mean with 0.1 of decay, of size e / (64 + rest) for
a parameter [out, rest]: wider layers, smaller steps.

References:
    Kingma and Ba, Adam: a method for stochastic optimization (2015).
    Metz et al., Tasks, stability, architecture, and compute: training more effective learned
    optimizers, and using them to train themselves, arXiv 2009.11243, for statistics by tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metaopt.base.fields import required
from metaopt.base.loss_statistics import FLOOR
from metaopt.base.network import Weights
from metaopt.rules.base import Proposal, Rule, State, flat_gradient
from metaopt.rules.learned.clock import CLOCK_FEATURES, clock_features
from metaopt.rules.learned.directions import HEAD_BOUND
from metaopt.rules.learned.lstm import LSTM, Head
from metaopt.rules.learned.running import means_over, running_means, shrinking
from metaopt.rules.rule_config import NetworkConfig, Place
from metaopt.tasks.base import Hidden, Observation
from metaopt.teleport.optimizer_state import Kept

DECAYS = (0.5, 0.9, 0.99)
"""The decays of the running means of the gradient."""
SQUARES_DECAY = 0.999
LOSS_DECAY = 0.9

MIXTURE = (0.4, 0.0, 0.6, 0.0)
"""Untrained coefficients of the running means, and of the gradient itself."""
WEIGHT_DECAY = 0.1
"""The weight decay of the untrained rule, in units of its step."""
FAN_OFFSET = 64
LOG_STEP = 1.0
"""The logarithm of (step of the untrained rule) * (FAN_OFFSET + rest)."""
LOG_STEP_BOUNDS = (-8.0, 2.0)

ROUNDING = 1e-5
"""Gradients below this share of the root mean square over all entries are taken for rounding."""
SMALL_SQUARE = 1e-16
"""Added under roots, whose derivative at 0 is infinite."""
SMALL_WEIGHT = 1e-3
LOSS_OFFSET = 1e-3
SMALLEST_LOG = -6.0

_MEANS = len(DECAYS)
_OWN = (_MEANS + 1) + _MEANS + 3 + CLOCK_FEATURES + 2
FEATURES = 2 * _OWN


class LayerWise(Rule):
    """What layer-wise rules keep: cells and numbers of whole parameters, means of entries.

    Attributes:
        lstm: the network, with a row for each parameter.
        numbers: names of the numbers that are kept of each parameter, beside its cells.
    """

    numbers: ClassVar[tuple[str, ...]] = ("count", "loss", "heard")
    lstm: LSTM

    @property
    def reads(self) -> Hidden:
        """The loss, if it is known; never the inputs of the layers."""
        return frozenset({"loss"})

    def kept(self, name: str) -> Kept:
        """m and v belong to entries; h, c, the counts and the loss belong to whole parameters."""
        return {"m": Kept.GRADIENTS, "v": Kept.SQUARES}.get(name, Kept.TENSORS)

    def initial_state(self, observation: Observation) -> State:
        """Zeros: h and c [B, hidden, L]; numbers [B, 1, L]; m [B, 3, P] and v [B, 1, P]."""
        W = observation.weights
        batch, entries = W[0].shape[0], sum(w[0].numel() for w in W)
        numbers = {name: W[0].new_zeros(batch, 1, len(W)) for name in self.numbers}
        means = {"m": W[0].new_zeros(batch, _MEANS, entries)}
        squares = {"v": W[0].new_zeros(batch, 1, entries)}
        return self.lstm.initial_state(batch, len(W)) | numbers | means | squares


class LayerUpdateLSTM(LayerWise):
    """m1 on statistics of whole parameters -> the coefficients of their updates.

    Args:
        hidden: size of the cells.
        scale: factor on the outputs of the head.
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
    """

    def __init__(self, hidden: int, scale: float, seed: int, name: str) -> None:
        super().__init__()
        self.scale = scale
        self.lstm = LSTM(FEATURES, hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, 1 + len(MIXTURE) + 1, seed, f"{name}/head", bound=HEAD_BOUND)

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f."""
        W, sizes = observation.weights, [w[0].numel() for w in observation.weights]
        G = flat_gradient(observation)[:, None]
        m = running_means(G, state["m"], DECAYS)
        v = torch.lerp(G.square(), state["v"], SQUARES_DECAY)
        count = state["count"] + 1
        moves = moving(G, sizes)
        # The means start at 0; this is corrected below, once for each parameter.
        floor = ROUNDING**2 * _mean_square(v, moves, sizes) + FLOOR
        steps = means_over(m, G, (v + floor).sqrt())
        start = torch.cat([*(1 - decay**count for decay in DECAYS), torch.ones_like(count)], dim=1)
        gain = (1 - SQUARES_DECAY**count).sqrt() / start

        base = torch.cat([w.new_full((1, 1, 1), 1 / (FAN_OFFSET + w.shape[2])) for w in W], dim=2)
        loss_features, heard = hear(observation.loss, state)
        count_of = entries(W)
        own = torch.cat(
            [
                statistics(grams(steps, sizes, count_of), mean_squares(W, count_of), gain, base),
                is_vector(W).expand_as(count),
                clock_features(count),
                loss_features,
            ],
            dim=1,
        )
        of_all = mean_over(own, moves, moves.sum(2, keepdim=True))
        features = torch.cat([own, of_all.expand_as(own)], dim=1)
        h, cells = self.lstm(features, state)

        z = self.scale * self.head(h)
        log_size, *mixed, more_decay = z.chunk(z.shape[1], dim=1)
        size = base * (log_size + LOG_STEP).clamp(*LOG_STEP_BOUNDS).exp()
        untrained = zip(mixed, MIXTURE, strict=True)
        mixture = size * gain * torch.cat([part + share for part, share in untrained], dim=1)
        decay = size * WEIGHT_DECAY * (1 + more_decay)
        parts = enumerate(
            zip(steps.split_with_sizes(sizes, dim=2), W, observation.grads, strict=True)
        )
        moved, shrunk = [], []
        for i, (part, w, g) in parts:
            shrunk.append(shrinking(w, g, -decay[:, :, i, None]))
            mixed_steps = torch.bmm(mixture[:, :, i, None].mT, part).reshape_as(w)
            moved.append(shrunk[-1] - mixed_steps)
        proposal = Proposal(updates=tuple(moved), decays=tuple(shrunk))
        return proposal, cells | heard | {"count": count, "m": m, "v": v}


def moving(G: Tensor, sizes: Sequence[int]) -> Tensor:
    """Whether each parameter has a gradient that is not 0: [B, 1, P] -> [B, 1, L]."""
    parts = G.split_with_sizes([*sizes], dim=2)
    return torch.cat([part.any(2, keepdim=True) for part in parts], dim=2)


def sums_of(v: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum over the entries of each parameter: [B, 1, P] -> [B, 1, L]."""
    parts = v.split_with_sizes([*sizes], dim=2)
    return torch.cat([part.sum(2, keepdim=True) for part in parts], dim=2)


def mean_over(values: Tensor, moves: Tensor, total: Tensor) -> Tensor:
    """The mean over the parameters that move: [B, any, L] -> [B, any, 1]; 0 if none moves."""
    return torch.where(moves, values, 0.0).sum(2, keepdim=True) / total.clamp(min=1)


def _mean_square(v: Tensor, moves: Tensor, sizes: Sequence[int]) -> Tensor:
    """The mean of v over all entries of the parameters that move: [B, 1, P] -> [B, 1, 1]."""
    sums = sums_of(v, sizes)
    count_of = torch.cat([v.new_full((1, 1, 1), float(size)) for size in sizes], dim=2)
    return mean_over(sums, moves, torch.where(moves, count_of, 0.0).sum(2, keepdim=True))


def is_vector(weights: Weights) -> Tensor:
    """1 for parameters of one column, [1, 1, L]; made without waiting for the device."""
    flags = [w.new_full((1, 1, 1), float(w.shape[2] == 1)) for w in weights]
    return torch.cat(flags, dim=2)


def entries(weights: Weights) -> Tensor:
    """How many each of them has, [1, 1, L]; made without waiting for the device."""
    return torch.cat([w.new_full((1, 1, 1), float(w[0].numel())) for w in weights], dim=2)


def grams(steps: Tensor, sizes: Sequence[int], entries: Tensor) -> Tensor:
    """The mean products of the rows of each parameter: [B, 4, P] -> [B, 4, 4, L].

    Args:
        steps: all rows.
        sizes: entries of each parameter.
        entries: they again, [1, 1, L].
    """
    parts = steps.split_with_sizes([*sizes], dim=2)
    return torch.stack([torch.bmm(part, part.mT) for part in parts], dim=3) / entries


def statistics(gram: Tensor, square: Tensor, gain: Tensor, base: Tensor) -> Tensor:
    """Of each parameter, on logarithmic scales where they are sizes, [B, 4 + 3 + 2, L].

    The root mean squares of the running means and of the gradient, over ``root``; the cosine of
    each mean with the gradient; the untrained step over the weights, and the weights.

    Args:
        gram: of means and gradient over ``root``, but for their start: [B, 4, 4, L].
        square: the mean squares of the weights, [B, 1, L].
        gain: what makes their start good, [B, 4, L].
        base: 1 / (FAN_OFFSET + rest), [1, 1, L].
    """
    squares = gram.diagonal(dim1=1, dim2=2).mT
    weight = (square + SMALL_SQUARE).sqrt() + SMALL_WEIGHT
    rms = (squares + SMALL_SQUARE).sqrt()
    cosines = gram[:, :-1, -1] / (rms[:, :-1] * rms[:, -1:])
    logs = ((gain * rms).log().clamp(min=SMALLEST_LOG), cosines)
    return torch.cat([*logs, (base / weight).log(), weight.log()], dim=1)


def mean_squares(tensors: Sequence[Tensor], entries: Tensor) -> Tensor:
    """Those over all entries of each of L tensors [B, any, any] -> [B, 1, L].

    Args:
        tensors: they.
        entries: of each, [1, 1, L].
    """
    if tensors[0].shape[0] > 1 or torch.is_grad_enabled():
        return torch.stack([x.square().sum(dim=(1, 2)) for x in tensors], dim=1)[:, None] / entries
    # In one call, for the sake of networks of few weights; at 0 norms have no second derivative.
    return torch.stack(torch._foreach_norm([*tensors])).square() / entries


def hear(loss: Tensor | None, state: State) -> tuple[Tensor, State]:
    """Two features of the loss, [B, 2, L], and the state that is kept of it.

    The features are log L minus its running mean, and log L itself; both are 0 if the loss is not
    known.
    """
    if loss is None:
        nothing = torch.zeros_like(state["loss"]).expand(-1, 2, -1)
        return nothing, {name: state[name] for name in ("loss", "heard")}
    # A loss that is not finite, or too negative for the logarithm, counts as unknown at this step:
    # once in the running mean it would spoil every later step.
    known = (torch.isfinite(loss) & (loss > -LOSS_OFFSET))[:, None, None].expand_as(state["loss"])
    log = torch.where(known, loss[:, None, None] + LOSS_OFFSET, 1.0).log()
    mean = torch.where(known, torch.lerp(log, state["loss"], LOSS_DECAY), state["loss"])
    heard = state["heard"] + known
    expected = mean / (1 - LOSS_DECAY ** heard.clamp(min=1))
    features = torch.cat([(log - expected).clamp(-3, 3), log / 3], dim=1)
    return torch.where(known, features, 0.0), {"loss": mean, "heard": heard}


class LayerConfig(NetworkConfig):
    """m1 parameter by parameter."""

    knows_loss_alone = True
    learns_decay = True
    kind: Literal["layer_lstm"] = required(
        "layer-wise update rule: one LSTM for all parameters, on statistics of mini-batches' "
        "gradients; its outputs mix running means of them, and give step size and weight decay"
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return LayerUpdateLSTM(self.hidden, self.scale, place.seed, place.name)
