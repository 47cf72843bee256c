"""Hand-made update rules: gradient descent, momentum, Adam, and AdamW with a cosine schedule."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from metaopt.base.fields import Decay, PositiveFloat, described, required
from metaopt.base.network import Weights
from metaopt.rules.base import Proposal, Rule, State, flat_gradient
from metaopt.rules.rule_config import Place, RuleConfig
from metaopt.tasks.base import Observation
from metaopt.teleport.optimizer_state import Kept


def _shaped(row: Tensor, weights: Weights) -> Weights:
    """A row [B, 1, P] of all entries as matrices shaped like the weights."""
    parts = row.split([W[0].numel() for W in weights], dim=2)
    return tuple(part.reshape(W.shape) for part, W in zip(parts, weights, strict=True))


class GradientDescent(Rule):
    """f = -eta grad L.

    Args:
        lr: eta, the step size.
    """

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr

    def initial_state(self, observation: Observation) -> State:
        """An empty state: gradient descent remembers nothing."""
        return {}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The update f of the class's equation, each [B, out, in]."""
        return Proposal(updates=tuple(-self.lr * G for G in observation.grads)), state


class Momentum(Rule):
    """m' = mu m + grad L,  f = -eta m'  (Polyak 1964, as torch.optim.SGD).

    Args:
        lr: eta, the step size.
        momentum: mu, the share of m that is kept.
    """

    def __init__(self, lr: float, momentum: float) -> None:
        super().__init__()
        self.lr = lr
        self.momentum = momentum

    def initial_state(self, observation: Observation) -> State:
        """m = 0, [B, 1, P]."""
        return {"m": torch.zeros_like(flat_gradient(observation)[:, None])}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The update f of the class's equation, each [B, out, in]."""
        m = self.momentum * state["m"] + flat_gradient(observation)[:, None]
        return Proposal(updates=_shaped(-self.lr * m, observation.weights)), {"m": m}

    def kept(self, name: str) -> Kept:
        """m is linear in gradients."""
        return Kept.GRADIENTS


class Adam(Rule):
    """m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,  f = -eta m^ / (sqrt(v^) + epsilon).

    m^ and v^ are m' and v' over 1 - b^t (Kingma and Ba 2015, as torch.optim.Adam).

    Args:
        lr: eta, the step size.
        beta1: b1, the decay of the running mean m of the gradients.
        beta2: b2, the decay of the running mean v of their squares.
        epsilon: added to the denominator, to keep it away from 0.
    """

    def __init__(self, lr: float, beta1: float, beta2: float, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.lr = lr
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon

    def initial_state(self, observation: Observation) -> State:
        """m = v = 0, [B, 1, P], and b1^0 = b2^0 = 1."""
        zeros = torch.zeros_like(flat_gradient(observation)[:, None])
        one = zeros.new_ones(())
        return {"m": zeros, "v": zeros.clone(), "decay1": one, "decay2": one.clone()}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The update f of the class's equation, each [B, out, in]."""
        G = flat_gradient(observation)[:, None]
        decay1, decay2 = state["decay1"] * self.beta1, state["decay2"] * self.beta2
        m = torch.lerp(G, state["m"], self.beta1)
        v = torch.lerp(G.square(), state["v"], self.beta2)
        root = (v / (1 - decay2)).sqrt() + self.epsilon
        updates = _shaped(-self.lr / (1 - decay1) * m / root, observation.weights)
        return Proposal(updates), {"m": m, "v": v, "decay1": decay1, "decay2": decay2}

    def kept(self, name: str) -> Kept:
        """m is linear in gradients, v in their squares."""
        return {"m": Kept.GRADIENTS, "v": Kept.SQUARES}.get(name, Kept.ALL)


class CosineAdamW(Adam):
    """w' = w - eta_t (m^ / (sqrt(v^) + epsilon) + decay w),  eta_t = eta (1 + cos(pi t / T)) / 2.

    This is ``Adam`` with decoupled weight decay and a step size that falls to 0 along a cosine; t
    is the number of steps taken before, and eta_t = 0 from step T on. It has to know T, the step at
    which it will be judged; at earlier steps a smaller T would do better.

    References:
        Loshchilov and Hutter, Decoupled weight decay regularization (2019).
        Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts (2017).

    Args:
        lr: eta, the step size.
        beta1: b1, the decay of the running mean m of the gradients.
        decay: the weight decay, in units of eta_t.
        horizon: T, the number of steps until the step size is 0.
    """

    def __init__(self, lr: float, beta1: float, decay: float, horizon: float) -> None:
        super().__init__(lr, beta1, beta2=0.999)
        self.decay = decay
        self.horizon = horizon

    def initial_state(self, observation: Observation) -> State:
        """The state of Adam, and t = 0."""
        count = observation.weights[0].new_zeros(())
        return super().initial_state(observation) | {"taken": count}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """The update f of the class's equation, each [B, out, in]."""
        proposal, new = super().propose(observation, state)
        assert proposal.updates is not None
        part = (state["taken"] / self.horizon).clamp(max=1)
        factor = (1 + (math.pi * part).cos()) / 2
        updates = tuple(
            factor * (f - self.lr * self.decay * W)
            for f, W in zip(proposal.updates, observation.weights, strict=True)
        )
        return Proposal(updates), new | {"taken": state["taken"] + 1}


class GradientDescentConfig(RuleConfig):
    """Gradient descent."""

    kind: Literal["gd"] = required("gradient descent")
    lr: PositiveFloat = required("step size")

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return GradientDescent(self.lr)


class MomentumConfig(RuleConfig):
    """Gradient descent with momentum."""

    knows_loss_alone = True
    kind: Literal["momentum"] = required("gradient descent with momentum")
    lr: PositiveFloat = required("step size")
    momentum: Decay = described(0.9, "decay of the running sum of gradients")

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return Momentum(self.lr, self.momentum)


class AdamConfig(RuleConfig):
    """Adam."""

    knows_loss_alone = True
    kind: Literal["adam"] = required("Adam")
    lr: PositiveFloat = required("step size")
    beta1: Decay = described(0.9, "decay of the running mean of gradients")
    beta2: Decay = described(0.999, "decay of the running mean of their squares")

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return Adam(self.lr, self.beta1, self.beta2)
