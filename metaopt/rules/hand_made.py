"""Update rules without anything to learn: gradient descent, momentum, Adam, AdamW with a cosine."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.rules.base import Proposal, Rule, State
from metaopt.tasks.base import Observation


def _over_factors(state: State, kinds: Mapping[str, int], log_factors: Weights) -> State:
    """The tensors kind_l over exp(degree l), for each kind and its degree in the gradient."""
    moved = {
        f"{kind}{i}": state[f"{kind}{i}"] * (-degree * log).exp()
        for kind, degree in kinds.items()
        for i, log in enumerate(log_factors)
    }
    return state | moved


class GradientDescent(Rule):
    """f = -eta grad L.

    Args:
        lr: eta.
    """

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr

    def initial_state(self, observation: Observation) -> State:
        """Nothing to remember."""
        return {}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f."""
        return Proposal(updates=tuple(-self.lr * G for G in observation.grads)), state


class Momentum(Rule):
    """m' = mu m + grad L,  f = -eta m'  (Polyak 1964, as torch.optim.SGD).

    Args:
        lr: eta.
        momentum: mu.
    """

    def __init__(self, lr: float, momentum: float) -> None:
        super().__init__()
        self.lr = lr
        self.momentum = momentum

    def initial_state(self, observation: Observation) -> State:
        """m = 0."""
        return {f"m{i}": torch.zeros_like(W) for i, W in enumerate(observation.weights)}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f."""
        m = [self.momentum * state[f"m{i}"] + G for i, G in enumerate(observation.grads)]
        return (
            Proposal(updates=tuple(-self.lr * M for M in m)),
            {f"m{i}": M for i, M in enumerate(m)},
        )

    def scaled(self, state: State, t: Tensor, log_factors: Weights) -> State:
        """m over exp(l)."""
        return _over_factors(state, {"m": 1}, log_factors)


class Adam(Rule):
    """m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,  f = -eta m^ / (sqrt(v^) + epsilon).

    m^ and v^ are m' and v' over 1 - b^t (Kingma and Ba 2015, as torch.optim.Adam).

    Args:
        lr: eta.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of their squares.
        epsilon: keeps the denominator away from 0.
    """

    def __init__(self, lr: float, beta1: float, beta2: float, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.lr = lr
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon

    def initial_state(self, observation: Observation) -> State:
        """m = v = 0, and b1^0 = b2^0 = 1."""
        zeros = {
            f"{kind}{i}": torch.zeros_like(W)
            for i, W in enumerate(observation.weights)
            for kind in "mv"
        }
        W = observation.weights[0]
        return zeros | {"decay1": W.new_ones(()), "decay2": W.new_ones(())}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f."""
        new: State = {
            "decay1": state["decay1"] * self.beta1,
            "decay2": state["decay2"] * self.beta2,
        }
        updates = []
        for i, G in enumerate(observation.grads):
            m = torch.lerp(G, state[f"m{i}"], self.beta1)
            v = torch.lerp(G.square(), state[f"v{i}"], self.beta2)
            new |= {f"m{i}": m, f"v{i}": v}
            root = (v / (1 - new["decay2"])).sqrt() + self.epsilon
            updates.append(-self.lr / (1 - new["decay1"]) * m / root)
        return Proposal(updates=tuple(updates)), new

    def scaled(self, state: State, t: Tensor, log_factors: Weights) -> State:
        """m over exp(l), v over exp(2 l)."""
        return _over_factors(state, {"m": 1, "v": 2}, log_factors)


class CosineAdamW(Adam):
    """w' = w - eta_t (m^ / (sqrt(v^) + epsilon) + decay w),  eta_t = eta (1 + cos(pi t / T)) / 2.

    ``Adam`` with decoupled weight decay, whose step size falls to 0 along a cosine, with t steps
    taken before, and stays 0 from T on. It has to be told where it will be judged; at any step
    before T it is worse than it could be.

    References:
        Loshchilov and Hutter, Decoupled weight decay regularization (2019).
        Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts (2017).

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
