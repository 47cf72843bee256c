"""A rule that is not told here what it was told in meta-training is refused, or says so."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from cases import train_config
from models import equal, hand_made, take_steps
from places import PRETRAINED
from torch import nn

import metaopt
from metaopt import LearnedRule
from metaopt.meta.build import meta_optimizer
from metaopt.rules.hand_made import Adam

PAIR = PRETRAINED / "coordinate_update_tele.safetensors"


def rule(kind: str, **sections: Any) -> LearnedRule:
    config = train_config(kind, **sections)
    return LearnedRule(meta_optimizer(config), config)


@pytest.mark.filterwarnings("ignore:updates only:UserWarning")
@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize(
    "path", [PAIR, PRETRAINED / "coordinate_update.safetensors"], ids=lambda path: path.stem
)
def test_rules_of_full_batches_are_refused_elsewhere_at_their_own_rate(
    path: Path, closure: bool
) -> None:
    here = models.perceptron()
    before = here.weights()
    optimizer = metaopt.LearnedOptimizer(here.model, path)
    if not closure:
        here.backward()
    line = r"^lr: found 1, .*inputs of layers.*about 1e-3.*\(general_update\)$"
    with pytest.raises(ValueError, match=line):
        optimizer.step(here.backward if closure else None)
    assert equal(before, here.weights())
    # A rate that was chosen for it is taken, from whatever group or scheduler.
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    first = here.backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_steps(here, optimizer, 20)
    assert here.loss() < first


def test_the_largest_rate_of_all_groups_counts() -> None:
    here = models.perceptron()
    first, *others = here.model.parameters()
    groups: Any = [{"params": [first], "lr": 1e-3}, {"params": others}]
    optimizer = metaopt.LearnedOptimizer(here.model, rule("coordinate_lstm_update"), params=groups)
    here.backward()
    with pytest.raises(ValueError, match="lr: found 1,"):
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("coordinate_lstm_update", {"meta": {"hide": {"inputs": 0.5}}}),
        ("coordinate_lstm_update", {"task": {"family": "my_tasks:Mine"}}),
        ("layer", {"meta": {"hide": {"loss": 0.5}}}),
    ],
)
def test_rules_that_learned_without_go_on(kind: str, sections: dict[str, Any]) -> None:
    here = models.perceptron().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(here.model, rule(kind, **sections))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_steps(here, optimizer, 2)


def test_rules_that_never_saw_inputs_see_none_on_a_chain() -> None:
    chain, other = models.chain().to(torch.float64), models.chain().to(torch.float64)
    # No chain, and the same function.
    other.model = nn.Sequential(other.model, nn.Identity())
    for here in (chain, other):
        own = rule("coordinate_directions_update", task={"family": "my_tasks:Mine"})
        take_steps(here, metaopt.LearnedOptimizer(here.model, own), 2)
    assert equal(chain.weights(), other.weights())


@pytest.mark.parametrize(
    ("kind", "make"),
    [("layer", models.perceptron), ("coordinate_directions_update", models.chain)],
)
def test_without_the_loss_a_rule_that_always_heard_it_says_so_once(kind: str, make: Any) -> None:
    here = make().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(here.model, rule(kind))
    with pytest.warns(UserWarning, match=r"with the loss.*step\(closure\)") as caught:
        take_steps(here, optimizer, 2)
    assert len(caught) == 1
    told = metaopt.LearnedOptimizer(here.model, rule(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told.step(here.backward)


@pytest.mark.filterwarnings("ignore:updates only:UserWarning")
def test_hand_made_updates_need_nothing() -> None:
    for own in (hand_made(Adam(0.01, 0.9, 0.99)), rule("adam")):
        here = models.perceptron().to(torch.float64)
        optimizer = metaopt.LearnedOptimizer(here.model, own)
        first = here.backward()
        take_steps(here, optimizer, 10)
        assert here.loss() < first
