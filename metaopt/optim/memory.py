"""What an optimizer remembers for good, beside the states of its parameters.

    teleports_off   why there are updates alone from now on, or None
    steps           that were taken
    rule            its label, and a fingerprint of its parameters
    averaged        whether the parameters hold the averaged weights (``modes``)

These are entries of each group, beside ``lr`` and ``weight_decay``: whatever copies, saves, loads
or extends an optimizer of torch carries its groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from metaopt.optim.learned import LearnedRule
from metaopt.rules.composed import MetaOptimizer

TELEPORTS_OFF = "teleports_off"
STEPS = "steps"
RULE = "rule"
AVERAGED = "averaged"
NOTHING_YET: dict[str, Any] = {TELEPORTS_OFF: None, STEPS: 0, RULE: None, AVERAGED: False}

_DIGITS = 16


def remembered(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the parameter groups remember: whatever any one of them does."""
    reasons = [group.get(TELEPORTS_OFF) for group in groups]
    rules = [group.get(RULE) for group in groups]
    return {
        TELEPORTS_OFF: next((why for why in reasons if why is not None), None),
        STEPS: max((group.get(STEPS, 0) for group in groups), default=0),
        RULE: next((rule for rule in rules if rule is not None), None),
        AVERAGED: any(group.get(AVERAGED, False) for group in groups),
    }


def remember(optimizer: Optimizer, **entries: Any) -> None:
    """Write values into every parameter group, and into those that are added later."""
    for group in (optimizer.defaults, *optimizer.param_groups):
        group.update(entries)


def state_dict_of(optimizer: Optimizer) -> dict[str, Any]:
    """``torch.optim.Optimizer.state_dict``, with why teleports are off beside the groups too."""

    def complete(_: Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict[TELEPORTS_OFF] = remembered(optimizer.param_groups)[TELEPORTS_OFF]

    # Before the hooks of others, which see and may change all of it.
    handle = optimizer.register_state_dict_post_hook(complete, prepend=True)
    try:
        return Optimizer.state_dict(optimizer)
    finally:
        handle.remove()


def identity(rule: LearnedRule, optimizer: MetaOptimizer) -> str:
    """Label and fingerprint of a rule: the same in every dtype, and wherever it was loaded from.

    Args:
        rule: the rule whose label is read.
        optimizer: the rule's, or a copy of it.
    """
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)
    for name, tensor in sorted(optimizer.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return f"{rule.name} {digest.hexdigest()}"


def is_same_rule(some: str, other: str) -> bool:
    """Whether two identities have one fingerprint: a label may be changed."""
    return some[-_DIGITS:] == other[-_DIGITS:]
