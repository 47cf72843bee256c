"""AdamW whose step size falls to 0 along a cosine: what a hand-made method gains by a horizon.

    w' = w - eta_t (m^ / (sqrt(v^) + epsilon) + decay w),   eta_t = eta (1 + cos(pi t / T)) / 2

with t steps taken before, and 0 from T on. It has to be told where it will be judged; at any step
before T it is worse than it could be.

References:
    Loshchilov and Hutter, Decoupled weight decay regularization (2019).
    Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts (2017).
"""

from __future__ import annotations

import math

from metaopt.optimizers import Adam
from metaopt.rules import Proposal, State
from metaopt.tasks import Observation


class CosineAdamW(Adam):
    """``Adam`` with decoupled weight decay and a cosine schedule.

    Args:
        lr: eta.
        beta1: decay of the mean of gradients.
        decay: of the weights, in units of eta_t.
        horizon: T.
    """

    def __init__(self, lr: float, beta1: float, decay: float, horizon: float) -> None:
        super().__init__(lr, beta1, beta2=0.999)
        self.decay = decay
        self.horizon = horizon

    def initial_state(self, observation: Observation) -> State:
        """That of Adam, and t = 0."""
        count = observation.weights[0].new_zeros(())
        return super().initial_state(observation) | {"taken": count}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f."""
        proposal, new = super().propose(observation, state)
        assert proposal.updates is not None
        part = (state["taken"] / self.horizon).clamp(max=1)
        factor = (1 + (math.pi * part).cos()) / 2
        updates = tuple(
            factor * (f - self.lr * self.decay * W)
            for f, W in zip(proposal.updates, observation.weights, strict=True)
        )
        return Proposal(updates), new | {"taken": state["taken"] + 1}
