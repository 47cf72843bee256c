"""A horizon that the optimizer is told: what rules hear of it, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from families import own_config
from torch import nn

import metaopt
from metaopt.base.config import check
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.optim.learned import LearnedRule


def eigen_rule() -> LearnedRule:
    """A rule whose outputs depend on all that it hears."""
    sections = {"rules": {"update": {"kind": "eigen_lstm", "hidden": 4, "scale": 100.0}}}
    config = check(TrainConfig, own_config() | sections, "own")
    return LearnedRule(meta_optimizer(config), config)


def trained(optimizer: torch.optim.Optimizer, model: nn.Linear, steps: int) -> torch.Tensor:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()
    return model.weight.detach().clone()


def optimizer_of(
    rule: LearnedRule, horizon: int | None
) -> tuple[nn.Linear, metaopt.LearnedOptimizer]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return model, metaopt.LearnedOptimizer(model, rule, horizon=horizon)


def test_what_is_told_is_heard_and_kept() -> None:
    rule = eigen_rule()
    found = []
    for horizon in (None, 4, 40):
        model, optimizer = optimizer_of(rule, horizon)
        first = trained(optimizer, model, 2)
        other = copy.deepcopy(model)
        again = pickle.loads(pickle.dumps(optimizer))
        assert again.horizon == horizon
        assert torch.equal(other.weight, first)
        found.append(trained(optimizer, model, 3))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("horizon", [0, -3, 2.5, "100", True])
def test_other_horizons_end_in_one_line(horizon: object) -> None:
    with pytest.raises(ValueError, match=r"horizon: found .*expected the whole number of steps"):
        metaopt.LearnedOptimizer(nn.Linear(4, 2), eigen_rule(), horizon=horizon)  # type: ignore[arg-type]


def test_a_step_of_lr_0_moves_nothing_and_a_smaller_lr_moves_less() -> None:
    rule = eigen_rule()
    moved = []
    for lr in (0.0, 0.1, 1.0):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        before = model.weight.detach().clone()
        optimizer = metaopt.LearnedOptimizer(model, rule, lr=lr)
        moved.append(float((trained(optimizer, model, 3) - before).abs().max()))
    assert moved[0] < 1e-7
    assert moved[0] < moved[1] < moved[2]
