"""A rule of a user's own, as docs/extending has it."""

from __future__ import annotations

import torch
from torch import nn

from metaopt.rules.base import Proposal, Rule, State
from metaopt.tasks.base import Observation


class SignedSteps(Rule):
    """f = -e^z sign(grad L), with one z that is learned."""

    def __init__(self, start: float = -5.0) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(start))

    def initial_state(self, observation: Observation) -> State:
        return {}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        return Proposal(updates=tuple(-self.z.exp() * G.sign() for G in observation.grads)), state


class NoRule:
    """What a configuration may name by mistake."""
