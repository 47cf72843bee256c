"""The layer-wise rule for matrices that teleports may mix: momenta, and no squares of entries.

    f_l = -s_l c^p (sum_d a_l^d step(m_l^d) + a_l^g G_l / rms(G_l) + a_l^w W_l)        matrices
    f_l = -s_l ((sum_d a_l^d m_l^d + a_l^g G_l) / root_l + a_l^w W_l)                  vectors
    c = exp mean_l min(0, log(rms(m_l) / v_l))
    (s_l, p_l, a_l) = head(h_l, is l's side served),   a_l^w = 2 (matrices), 0.1 (vectors)
    h_l = m1(statistics of parameter l, mean statistics of all, h_l)

with m^d running means of the gradient at the decays ``DECAYS``. ``step`` makes all singular values
of a mean alike, or only sets its size (``matrix_steps``). All that is kept of a matrix is linear in
gradients, so that it follows a teleport exactly, also one that mixes entries: the next step is that
of a run that began there. Vectors (biases, gains of norms) are divided by the root of a running
mean of squares, as in Adam, unless a linear pair moves them.

Steps of unit size do not end by themselves. What ends them here is c: how large momenta m (at the
decay 0.9) are beside the root mean square v of gradients over the last thousand steps. It is small
where gradients have become small, and where they are noise that cancels. Its logarithm is the mean
over all matrices, since a teleport that makes the gradients of one side of a pair larger makes
those of the other side smaller. Weights shrink with the step: they go on as long as it does.

Statistics, clock and loss are those of the layer-wise rule (``layer``). The side of a linear pair
that a parameter lies on is added, and the own log(rms(m_l) / v_l). Where teleports serve the two
sides in turn (``turns``), the size of a step on the side that is not served is an output of its
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaopt.base.fields import described, required
from metaopt.base.loss_statistics import FLOOR
from metaopt.rules.base import Proposal, Rule, State, flat_gradient
from metaopt.rules.learned.clock import CLOCK_FEATURES, clock_features, fading
from metaopt.rules.learned.directions import HEAD_BOUND
from metaopt.rules.learned.layer import (
    DECAYS,
    ROUNDING,
    SMALLEST_LOG,
    SQUARES_DECAY,
    LayerWise,
    hear,
    is_vector,
    mean_over,
    statistics,
)
from metaopt.rules.learned.lstm import LSTM, Head
from metaopt.rules.learned.matrix_steps import TINY, MatrixSteps, Normalised, Orthogonal
from metaopt.rules.learned.turns import served
from metaopt.rules.rule_config import FadingConfig, Place
from metaopt.tasks.base import Observation

STEPS: dict[str, type[MatrixSteps]] = {"orthogonal": Orthogonal, "normalised": Normalised}
"""What is made of momenta, by name."""
MIXTURE = (0.6, 0.4, 0.0, 0.0)
"""Untrained coefficients of the running means, and of the gradient itself."""
SIZE = 0.1
"""The untrained step of a matrix is ``SIZE`` / rest^(1/4); of a vector a tenth of it."""
SHRINKS_AFTER = 200
"""Untrained steps shrink as 1 / (1 + t / 200), beside c."""
POWER = 1.0
"""The untrained power of c."""
COHERENT = 1
"""The number of the mean in ``DECAYS`` whose size c reads."""
WEIGHT_DECAY = (2.0, 0.1)
"""The weight decay, in units of the step: of a matrix, of a vector.

It is not learned: it pays later than a window of meta-training reaches.
"""
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
        unserved: the untrained logarithm of the factor on steps of a side that is not served.
        fades: steps after which what is learned, and taking turns, count half; None: they never do.
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
    """

    numbers = (*LayerWise.numbers, "power")

    def __init__(
        self,
        hidden: int,
        scale: float,
        step: MatrixSteps,
        unserved: float,
        fades: int | None,
        seed: int,
        name: str,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.step = step
        self.unserved = unserved
        self.fades = fades
        self.lstm = LSTM(FEATURES, hidden, seed, f"{name}/lstm")
        self.head = Head(hidden, 3 + len(MIXTURE), seed, f"{name}/head", bound=HEAD_BOUND)

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f."""
        W, sizes = observation.weights, [w[0].numel() for w in observation.weights]
        mixed = frozenset() if observation.pairs is None else observation.pairs.tensors
        by_entry = [w.shape[2] == 1 and i not in mixed for i, w in enumerate(W)]
        G = flat_gradient(observation)[:, None]
        means = zip(state["m"].split(1, dim=1), DECAYS, strict=True)
        # Python numbers, since a tensor of them would have to be copied to the device first.
        m = torch.cat([torch.lerp(G, mean, decay) for mean, decay in means], dim=1)
        squares = torch.lerp(G.square(), state["v"], SQUARES_DECAY)
        v = torch.cat(
            [
                part if alone else torch.zeros_like(part)
                for part, alone in zip(squares.split(sizes, dim=2), by_entry, strict=True)
            ],
            dim=2,
        )
        count = state["count"] + 1
        moves = torch.cat([part.any(2, keepdim=True) for part in G.split(sizes, dim=2)], dim=2)
        start = torch.cat([*(1 - decay**count for decay in DECAYS), torch.ones_like(count)], dim=1)
        raw = torch.cat([m, G], dim=1).split(sizes, dim=2)
        gains = 1 / start
        shown, steps = [], []
        by_matrix = [i for i, alone in enumerate(by_entry) if not alone]
        grown = [(gains[:, :, i, None] * raw[i]) for i in range(len(W))]
        made = self.step([grown[i].unflatten(2, W[i].shape[1:]) for i in by_matrix])
        ready = dict(zip(by_matrix, made, strict=True))
        old = (1 - SQUARES_DECAY**count).rsqrt()
        variances = v.split(sizes, dim=2)
        for i, own in enumerate(grown):
            if by_entry[i]:
                floor = ROUNDING**2 * variances[i].mean(2, keepdim=True) + FLOOR
                shown.append(own * (variances[i] + floor).rsqrt() / old[:, :, i, None])
                steps.append(shown[-1])
            else:
                # Of the slowest mean, whose size the others are compared with.
                size = own[:, _MEANS - 1 : _MEANS].square().mean(2, keepdim=True)
                shown.append(own * (size + TINY).rsqrt())
                steps.append(ready[i].flatten(2))

        kinds = zip(W, by_entry, strict=True)
        of_matrix = torch.cat(
            [w.new_full((1, 1, 1), not alone, dtype=torch.bool) for w, alone in kinds], dim=2
        )
        base = torch.cat(
            [
                w.new_full((1, 1, 1), SIZE / w.shape[2] ** 0.25 / (10 if alone else 1))
                for w, alone in zip(W, by_entry, strict=True)
            ],
            dim=2,
        )
        loss_features, heard = hear(observation.loss, state)
        ones = torch.ones_like(start)
        side = torch.zeros_like(count)
        if observation.pairs is not None:
            side = side + observation.pairs.sides.to(count)
        power = _mean_squares(G.split(sizes, dim=2))
        power = torch.lerp(power, state["power"], SQUARES_DECAY)
        coherent = _mean_squares([own[:, COHERENT, None] for own in grown])
        # Of a parameter that has had no gradient yet, both are 0.
        small = ((coherent + TINY) / (power * old.square() + TINY)).log() / 2
        small = small.clamp(SMALLEST_LOG, 0)
        calm = mean_over(small, moves & of_matrix, (moves & of_matrix).sum(2, keepdim=True))
        own_features = torch.cat(
            [
                small * RATIO,
                statistics(torch.cat(shown, dim=2), W, ones, base, sizes),
                is_vector(W).expand_as(count),
                side,
                clock_features(count),
                loss_features,
            ],
            dim=1,
        )
        of_all = mean_over(own_features, moves, moves.sum(2, keepdim=True))
        features = torch.cat([own_features, of_all.expand_as(own_features)], dim=1)
        h, cells = self.lstm(features, state)

        fade = fading(count, self.fades)
        z = self.scale * fade * self.head(h)
        log_size, log_unserved, more_power, *mixed_by = z.split(1, dim=1)
        waits = side * served(count) < 0
        log_size = log_size + torch.where(waits, fade * self.unserved + log_unserved, 0.0)
        log_size = log_size + torch.where(of_matrix, (POWER + more_power) * calm, 0.0)
        size = base * log_size.clamp(*LOG_STEP_BOUNDS).exp() / (1 + count / SHRINKS_AFTER)
        untrained = zip(mixed_by, MIXTURE, strict=True)
        mixture = size * torch.cat([part + share for part, share in untrained], dim=1)
        decay = size * torch.where(of_matrix, *WEIGHT_DECAY)
        moved, shrunk = [], []
        for i, (own, w, g) in enumerate(zip(steps, W, observation.grads, strict=True)):
            shrunk.append(-decay[:, :, i, None] * torch.where(g == 0, 0.0, w))
            moved.append(shrunk[-1] - torch.bmm(mixture[:, :, i, None].mT, own).reshape_as(w))
        proposal = Proposal(updates=tuple(moved), decays=tuple(shrunk))
        return proposal, cells | heard | {"count": count, "m": m, "v": v, "power": power}


def _mean_squares(parts: Sequence[Tensor]) -> Tensor:
    """Of each parameter, [B, 1, n] -> [B, 1, L]."""
    return torch.cat([part.square().mean(2, keepdim=True) for part in parts], dim=2)


class MatrixConfig(FadingConfig):
    """m1 parameter by parameter, on momenta of matrices."""

    knows_loss_alone = True
    decays = True
    follows_pairs = True
    kind: Literal["matrix_lstm"] = required(
        "layer-wise update rule whose state follows every teleport: one LSTM for all parameters, "
        "whose outputs mix momenta of matrices and give the step size; its weight decay is fixed"
    )
    step: Literal["orthogonal", "normalised"] = described(
        "orthogonal", "what a momentum is made into: all singular values alike, or its size set"
    )
    unserved: Annotated[float, Field(ge=-10, le=0)] = described(
        0.0,
        "logarithm of the factor that steps start with on the side of a linear pair that this "
        "step's teleport does not serve; 0 where there are none",
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        step = STEPS[self.step]()
        own = (self.hidden, self.scale, step, self.unserved, self.fades)
        return MatrixUpdateLSTM(*own, place.seed, place.name)
