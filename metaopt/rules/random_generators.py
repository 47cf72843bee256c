"""A control for the act of teleporting: generators without any knowledge of the task.

    T_t = n_t Z_t / ||Z_t||_F,   Z_t standard normal,   n_t a given norm for inner step t + 1

What a learned teleporter of the same norms does better, it does for its directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaopt.base.config import ConfigError
from metaopt.base.fields import PositiveFloat, required
from metaopt.base.streams import fingerprints, normals
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.learned.features import generator_sizes, split_generators
from metaopt.rules.rule_config import Place, RuleConfig
from metaopt.tasks.base import Observation
from metaopt.teleport.base import Need
from metaopt.teleport.config import TeleporterConfig

_HALF_WORD = 2**16


class RandomGenerators(Rule):
    """T of norm n_t in a direction that is uniform over the sphere, new at each step.

    The draws are keyed by the weights that a trajectory starts from, and counted by the inner step:
    they are the same in whatever batch, on whatever number of processes and on whatever device the
    trajectory runs, and when it is resumed.

    Args:
        norms: n_0, n_1, ..; the Frobenius norm of all generators of a step together, as
            ``teleport.norm_mean`` has it in results. The last one holds on. Those actions whose
            algebra is not all matrices apply the part of T that lies in it.
        seed: another one gives other draws.
    """

    norms: Tensor

    def __init__(self, norms: Sequence[float], seed: int) -> None:
        super().__init__()
        self.register_buffer("norms", torch.tensor(norms))
        self.seed = seed

    def initial_state(self, observation: Observation) -> State:
        """The key of each trajectory, in words of 16 bits, [B, 4], and the inner step.

        All are held as floating-point numbers, which is what ``torch.optim`` makes of any state
        that it loads; 16 bits are exact in each of them.
        """
        weights = torch.cat([W.flatten(1) for W in observation.weights], dim=1)
        words = fingerprints(weights, self.seed)
        halves = [half for word in words for half in (word % _HALF_WORD, word // _HALF_WORD)]
        return {"key": torch.stack(halves, dim=1).to(weights), "step": weights.new_zeros(())}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """One random generator T for each adjacent pair of layers."""
        low0, high0, low1, high1 = state["key"].long().unbind(1)
        step = state["step"].long()
        entries = sum(k * k for k in generator_sizes(observation))
        key = (low0 + high0 * _HALF_WORD, low1 + high1 * _HALF_WORD)
        Z = normals(key, step, entries)
        # index_select, since an index by a tensor without axes would wait for the device.
        norm = self.norms.index_select(0, step.clamp(max=len(self.norms) - 1)[None])
        rows = (Z / Z.norm(dim=1, keepdim=True)).to(self.norms) * norm
        proposal = Proposal(generators=split_generators(rows, observation))
        return proposal, {"key": state["key"], "step": state["step"] + 1}


class RandomConfig(RuleConfig):
    """Generators of given norms in random directions."""

    generates_for = Need.NETWORK
    kind: Literal["random"] = required("a control: random generators, without parameters")
    norms: Annotated[list[PositiveFloat], Field(min_length=1)] = required(
        "Frobenius norm of the generators at inner step 1, 2, and so on; the last one is that of "
        "all later steps"
    )

    def make(self, place: Place) -> Rule:
        """The rule that this section describes."""
        return RandomGenerators(self.norms, place.seed)

    def require(self, teleporter: TeleporterConfig) -> None:
        """Raise ``ConfigError`` where the limit would change the norms."""
        if teleporter.limit != "capped":
            raise ConfigError(
                f"field teleporter.limit: capped keeps the norms of random generators, found "
                f"{teleporter.limit}"
            )
        if max(self.norms) > teleporter.max_norm:
            raise ConfigError(
                f"field rules.teleport.norms: at most teleporter.max_norm, "
                f"{teleporter.max_norm:g}, found {max(self.norms):g}"
            )
