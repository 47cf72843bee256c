"""A teleporter before an update rule: w_{t+1} = g_t . w_t + f_t, from one gradient.

The gradient at g . w is the one at w, moved by the inverse transpose. So the update rule sees what
it would see had the run been at g . w, and no second gradient is taken. That is exact for actions
that are linear in the weights, as those on linear pairs are. What the element is good for is the
very step that follows, and meta-gradients reach the teleporter through that step, in first order
too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from metaopt.base.network import Weights
from metaopt.rules.base import Proposal, Rule
from metaopt.rules.composed import (
    Adjusted,
    MetaOptimizer,
    States,
    Step,
    as_proposed,
    stepped,
)
from metaopt.tasks.base import Ground, Observation, cut
from metaopt.teleport.pair_engine import PairEngine, PairReport


class TeleportFirst(MetaOptimizer):
    """Teleport, then update: w_{t+1} = g_t . w_t + f_t.

    Args:
        rules: ``update``, which sees g_t . w_t, and ``teleport``, which sees w_t.
        engine: carries the generators out.
    """

    def __init__(self, rules: Mapping[str, Rule], engine: PairEngine) -> None:
        super().__init__(rules, engine)
        self._first = engine

    def step(
        self,
        weights: Weights,
        observation: Observation,
        state: States,
        problem: Ground,
        adjusted: Adjusted = as_proposed,
    ) -> Step[States]:
        """See ``MetaOptimizer.step``."""
        new, report = dict(state), None
        first, new["teleport"] = self.rules["teleport"].propose(observation, state["teleport"])
        first = adjusted(weights, first)
        if first.elements is not None or first.generators is not None:
            weights, report = self._teleported(weights, first, problem)
            new = {name: report.moved(rule, new[name]) for name, rule in self.rules.items()}
            attached = any(W.requires_grad for W in observation.weights)
            observation = replace(
                observation,
                weights=weights if attached else cut(weights),
                grads=report.move.gradients(observation.grads),
            )
        proposal, new["update"] = self.rules["update"].propose(observation, new["update"])
        proposal = adjusted(weights, proposal)
        assert proposal.updates is not None
        return Step(*stepped(weights, proposal.updates, proposal.averaging, new), report)

    def _teleported(
        self, weights: Weights, first: Proposal, ground: Ground
    ) -> tuple[Weights, PairReport]:
        if first.elements is not None:
            return self._first.move(weights, first.elements, ground)
        assert first.generators is not None
        return self._first.teleport(weights, first.generators, ground, first.frames)
