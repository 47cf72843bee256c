"""The layer-wise rule for matrices that teleports may mix: momenta, and no squares of entries.

    f_l = -s_l c^p (b_l (sum_d a_l^d step(m_l^d) + a_l^g G_l / rms(G_l)) + r_l W_l)        matrices
    f_l = -s_l (b_l (sum_d a_l^d m_l^d + a_l^g G_l) / root_l + r_l W_l)                    vectors
    b_l = (1 or ``wide``) / sqrt(M max(out, rest))  (matrices),   0.03 / sqrt(M)  (vectors)
    c = exp mean_l min(0, log(rms(m_l) / v_l))
    (s_l, p_l, a_l) = head(h_l, is l's side served)
    h_l = m1(statistics of parameter l, mean statistics of all, h_l)

with m^d running means of the gradient at the decays ``DECAYS``. ``step`` makes all singular values
of a mean alike, only sets its size, or makes both (``matrix_steps``), each with coefficients a of
its own. All that is kept of a matrix is linear in gradients, so that it follows a teleport exactly,
also one that mixes entries: the next step is that of a run begun there. Vectors (biases, gains of
norms) are divided by the root of a running mean of squares, as in Adam, unless a pair moves them.

The sizes b_l are those of untrained steps. ``step`` has entries of root mean square 1, so that the
singular values of b_l step(m) are 1 / sqrt(M) where they are alike, of M matrices in all: how far
outputs go does not depend on width or depth; ``wide`` is for one that reads more than it makes, as
the A of an adapter does. Weights decay by r_l = weight_decay / sqrt(M).

Steps of unit size do not end by themselves. What ends them here is c: how large momenta m (at the
decay 0.9) are beside the root mean square v of gradients over the last thousand steps. It is small
where gradients have become small, and where they are noise that cancels. Its logarithm is the mean
over all matrices, since a teleport that makes the gradients of one side of a pair larger makes
those of the other side smaller. Weights shrink with the step: they go on as long as it does.

Where iterates are averaged (``averaging``), f moves the fast one, z, and x' = x + p / (t + p) (z' -
x). The state keeps d = z - y, a difference of weights, which follows a teleport as weights do. The
constants of untrained steps are those of ``matrix_starts``.

Statistics, clock and loss are those of the layer-wise rule (``layer``), with the side of a linear
pair that a parameter lies on, and its own log(rms(m_l) / v_l). Where teleports serve sides in turn
(``turns``), the size of a step on the side that is not served is an output of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from metaopt.base.config import ConfigError
from metaopt.base.fields import described, required
from metaopt.base.loss_statistics import FLOOR
from metaopt.base.network import Weights
from metaopt.rules.averaging import AHEAD, Averaging, averages, between
from metaopt.rules.base import Proposal, Rule, State, flat_gradient
from metaopt.rules.learned.clock import CLOCK_FEATURES, clock_features, fading
from metaopt.rules.learned.directions import HEAD_BOUND
from metaopt.rules.learned.layer import (
    DECAYS,
    ROUNDING,
    SMALLEST_LOG,
    SQUARES_DECAY,
    LayerWise,
    entries,
    grams,
    hear,
    is_vector,
    mean_over,
    mean_squares,
    moving,
    statistics,
)
from metaopt.rules.learned.lstm import LSTM, Head
from metaopt.rules.learned.matrix_starts import STARTS, VECTOR_DECAY, Start
from metaopt.rules.learned.matrix_steps import TINY, Both, MatrixSteps, Normalised, Orthogonal
from metaopt.rules.learned.running import running_means, shrinking
from metaopt.rules.learned.turns import served
from metaopt.rules.rule_config import FadingConfig, Place, TurnsConfig
from metaopt.tasks.base import Observation
from metaopt.teleport.config import EXACT, TeleporterConfig
from metaopt.teleport.optimizer_state import Kept

STEPS: dict[str, type[MatrixSteps]] = {
    "orthogonal": Orthogonal,
    "normalised": Normalised,
    "both": Both,
}
"""What is made of momenta, by name."""
COHERENT = 1
"""The number of the mean in ``DECAYS`` whose size c reads."""
LOG_STEP_BOUNDS = (-10.0, 4.0)
RATIO = 1 / 3
"""Factor on logarithms of ratios of norms among the features."""

_MEANS = len(DECAYS)
_OWN = (_MEANS + 1) + _MEANS + 3 + 2 + CLOCK_FEATURES + 2
FEATURES = 2 * _OWN


class MatrixUpdateLSTM(LayerWise):
    """m1 on statistics of whole parameters -> the coefficients of their updates.

    One more number is kept of each parameter: the running mean of the mean square of its gradient.

    Args:
        hidden: size of the cells.
        scale: factor on the outputs of the head.
        step: what is made of the running means of a matrix.
        start: the constants of untrained steps, and whether iterates are averaged.
        unserved: the untrained logarithm of the factor on steps of a side that is not served.
        fades: steps after which what is learned, and taking turns, count half; None: they never do.
        weight_decay: of matrices, that goes with an untrained step.
        every: steps of a turn.
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
    """

    numbers = (*LayerWise.numbers, "power")

    def __init__(
        self,
        hidden: int,
        scale: float,
        step: MatrixSteps,
        start: Start,
        unserved: float,
        fades: int | None,
        weight_decay: float,
        every: int,
        seed: int,
        name: str,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.step = step
        self.start = start
        self.unserved = unserved
        self.fades = fades
        self.weight_decay = weight_decay
        self.every = every
        self.lstm = LSTM(FEATURES, hidden, seed, f"{name}/lstm")
        # Of a second kind of step nothing is taken before it is learned.
        self.more = (step.kinds - 1) * (_MEANS + 1)
        self.mixture = (*start.mixture, *(0.0,) * self.more)
        self.head = Head(hidden, 3 + len(self.mixture), seed, f"{name}/head", bound=HEAD_BOUND)

    def kept(self, name: str) -> Kept:
        """As in other layer-wise rules; d is a difference of weights."""
        return Kept.DIFFERENCES if name == AHEAD else super().kept(name)

    def evaluated(self, weights: Weights, state: State) -> Weights:
        """x, the averages, if there are any."""
        return averages(weights, state[AHEAD]) if AHEAD in state else weights

    def trained(self, averaged: Weights, state: State) -> Weights:
        """y, where gradients are taken."""
        return between(averaged, state[AHEAD]) if AHEAD in state else averaged

    def initial_state(self, observation: Observation) -> State:
        """That of layer-wise rules; where iterates are averaged, d [B, 1, P] as well: 0."""
        state = super().initial_state(observation)
        return (
            state if self.start.averaged is None else state | {AHEAD: torch.zeros_like(state["v"])}
        )

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f, and how fast iterates are averaged, if they are."""
        W, G = observation.weights, flat_gradient(observation)[:, None]
        mixed = frozenset() if observation.pairs is None else observation.pairs.tensors
        by_entry = [w.shape[2] == 1 and i not in mixed for i, w in enumerate(W)]
        means = _means(W, G, by_entry, state)
        steps, shown = self._steps(W, G, by_entry, means)
        sizes = [w[0].numel() for w in W]
        moves = moving(G, sizes)
        kinds = zip(W, by_entry, strict=True)
        matrices = torch.cat(
            [w.new_full((1, 1, 1), not alone, dtype=torch.bool) for w, alone in kinds], dim=2
        )
        count_of = entries(W)
        small = _small(means, count_of)
        calm = mean_over(small, moves & matrices, (moves & matrices).sum(2, keepdim=True))
        base, rate = self.start.sizes(W, by_entry, self.weight_decay)
        loss_features, heard = hear(observation.loss, state)
        side = torch.zeros_like(means.count)
        if observation.pairs is not None:
            side = side + observation.pairs.sides.to(side)
        ones = torch.ones_like(small).expand(-1, _MEANS + 1, -1)
        own_features = torch.cat(
            [
                small * RATIO,
                statistics(
                    grams(torch.cat(shown, dim=2), sizes, count_of),
                    mean_squares(W, count_of),
                    ones,
                    base,
                ),
                is_vector(W).expand_as(side),
                side,
                clock_features(means.count),
                loss_features,
            ],
            dim=1,
        )
        of_all = mean_over(own_features, moves, moves.sum(2, keepdim=True))
        features = torch.cat([own_features, of_all.expand_as(own_features)], dim=1)
        h, cells = self.lstm(features, state)

        fade = fading(means.count, self.fades)
        z = self.scale * fade * self.head(h)
        log_size, log_unserved, more_power, *mixed_by = z.split(1, dim=1)
        waits = side * served(means.count, self.every) < 0
        log_size = log_size + torch.where(waits, fade * self.unserved + log_unserved, 0.0)
        log_size = log_size + torch.where(matrices, (self.start.power + more_power) * calm, 0.0)
        old = 1 + means.count / self.start.shrinks_after
        length = log_size.clamp(*LOG_STEP_BOUNDS).exp() / old
        untrained = zip(mixed_by, self.mixture, strict=True)
        mixture = base * length * torch.cat([part + share for part, share in untrained], dim=1)
        decay = rate * length * old ** (1 / 3)
        moved, shrunk = [], []
        for i, (own, w, g) in enumerate(zip(steps, W, observation.grads, strict=True)):
            shrunk.append(shrinking(w, g, -decay[:, :, i, None]))
            moved.append(shrunk[-1] - torch.bmm(mixture[:, :, i, None].mT, own).reshape_as(w))
        proposal = Proposal(tuple(moved), decays=tuple(shrunk))
        kept = {"count": means.count, "m": means.m, "v": means.v, "power": means.power}
        p = self.start.averaged
        if p is not None:
            proposal = replace(proposal, averaging=Averaging(state[AHEAD], p / (means.count + p)))
            kept[AHEAD] = state[AHEAD]
        return proposal, cells | heard | kept

    def _steps(
        self, W: Weights, G: Tensor, by_entry: Sequence[bool], means: _Means
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each parameter, [B, any, entries]: steps of unit size, and what features see."""
        variances = means.v.split([w[0].numel() for w in W], dim=2)
        matrices = [i for i, alone in enumerate(by_entry) if not alone]
        made = self.step([means.grown[i].unflatten(2, W[i].shape[1:]) for i in matrices])
        ready = dict(zip(matrices, made, strict=True))
        steps, shown = [], []
        for i, own in enumerate(means.grown):
            if by_entry[i]:
                floor = ROUNDING**2 * variances[i].mean(2, keepdim=True) + FLOOR
                shown.append(own * (variances[i] + floor).rsqrt() * means.start[:, :, i, None])
                steps.append(functional.pad(shown[-1], (0, 0, 0, self.more)))
            else:
                # Of the slowest mean, whose size the others are compared with.
                size = own[:, _MEANS - 1 : _MEANS].square().mean(2, keepdim=True)
                shown.append(own * (size + TINY).rsqrt())
                steps.append(ready[i].flatten(2))
        return steps, shown


@dataclass(frozen=True)
class _Means:
    """What is kept, and what is made of it.

    Attributes:
        count: gradients that were not 0, [B, 1, L].
        m: running means of the gradient, [B, 3, P].
        v: that of squares of vectors, [B, 1, P]; 0 elsewhere.
        power: that of the mean square of a parameter's gradient, [B, 1, L].
        grown: the means corrected for their start at 0, and the gradient: [B, 4, entries] each.
        start: the root of what corrects ``v`` and ``power``, [B, 1, L].
    """

    count: Tensor
    m: Tensor
    v: Tensor
    power: Tensor
    grown: list[Tensor]
    start: Tensor


def _means(W: Weights, G: Tensor, by_entry: Sequence[bool], state: State) -> _Means:
    """The next ones, of gradients [B, 1, P]."""
    sizes = [w[0].numel() for w in W]
    m = running_means(G, state["m"], DECAYS)
    squares = torch.lerp(G.square(), state["v"], SQUARES_DECAY).split_with_sizes(sizes, dim=2)
    v = [x if alone else torch.zeros_like(x) for x, alone in zip(squares, by_entry, strict=True)]
    count = state["count"] + 1
    gains = [1 / (1 - decay**count) for decay in DECAYS]
    gain = torch.cat([*gains, torch.ones_like(count)], dim=1)
    raw = torch.cat([m, G], dim=1).split_with_sizes(sizes, dim=2)
    grown = [gain[:, :, i, None] * own for i, own in enumerate(raw)]
    power = torch.lerp(
        mean_squares(G.split_with_sizes(sizes, dim=2), entries(W)), state["power"], SQUARES_DECAY
    )
    start = (1 - SQUARES_DECAY**count).sqrt()
    return _Means(count, m, torch.cat(v, dim=2), power, grown, start)


def _small(means: _Means, count_of: Tensor) -> Tensor:
    """min(0, log(rms(m) / v)) of each parameter, [B, 1, L]."""
    coherent = mean_squares([own[:, COHERENT, None] for own in means.grown], count_of)
    # Of a parameter that has had no gradient yet, both are 0.
    ratio = (coherent + TINY) / (means.power / means.start.square() + TINY)
    return (ratio.log() / 2).clamp(SMALLEST_LOG, 0)


class MatrixConfig(FadingConfig, TurnsConfig):
    """m1 parameter by parameter, on momenta of matrices."""

    knows_loss_alone = True
    follows_pairs = True
    kind: Literal["matrix_lstm"] = required(
        "layer-wise update rule whose state follows every teleport: one LSTM for all parameters, "
        "whose outputs mix momenta of matrices and give the step size; its weight decay is fixed"
    )
    step: Literal["orthogonal", "normalised", "both"] = described(
        "orthogonal",
        "what a momentum is made into: all singular values alike; its size set; or both",
    )
    iterates: Literal["last", "averaged"] = described(
        "last",
        "which iterates one evaluates: the last one, or an average over about the last fifth of "
        "the way, which `optimizer.eval()` puts into the parameters",
    )
    unserved: Annotated[float, Field(ge=-10, le=0)] = described(
        0.0,
        "logarithm of the factor that steps start with on the side of a linear pair that this "
        "step's teleport does not serve; 0 where there are none",
    )
    weight_decay: Annotated[float, Field(ge=0)] = described(
        0.2, "decay of matrices that goes with an untrained step; not learned: it pays later"
    )

    def require(self, teleporter: TeleporterConfig) -> None:
        """Raise ``ConfigError`` if averages could not follow the teleports exactly."""
        if self.iterates == "averaged" and teleporter.action not in EXACT:
            raise ConfigError(
                f"field rules.update.iterates: found averaged, with teleporter.action "
                f"{teleporter.action}, which does not act on weights by a linear map: expected "
                f"last, or an action out of {', '.join(EXACT)}"
            )

    @property
    def decay(self) -> str:
        """See ``RuleConfig.decay``."""
        return f"goes with the step ({self.weight_decay:g} matrices, {VECTOR_DECAY:g} vectors)"

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        own = (
            self.hidden,
            self.scale,
            STEPS[self.step](),
            STARTS[self.iterates],
            self.unserved,
            self.fades,
            self.weight_decay,
            self.every,
        )
        return MatrixUpdateLSTM(*own, place.seed, place.name)
