"""A horizon that the optimizer is told: what rules hear of it, and what is refused."""

from __future__ import annotations

import copy
import pickle
import warnings

import higher
import pytest
import torch
from families import own_config
from torch import nn

import metaopt
from metaopt.base.config import check
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.optim.learned import LearnedRule
from metaopt.optim.reach import PastHorizonWarning


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


def test_steps_end_at_the_horizon_with_a_warning_past_it() -> None:
    model, optimizer = optimizer_of(eigen_rule(), 5)
    before = trained(optimizer, model, 5)
    with pytest.warns(PastHorizonWarning, match=r"horizon: step 6 is past the 5 .* was told"):
        ahead = trained(optimizer, model, 1)
    # What is averaged goes on toward fast iterates; these stay.
    optimizer.eval()
    at_end = model.weight.detach().clone()
    optimizer.train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="horizon:")
        trained(optimizer, model, 200)
    optimizer.eval()
    moved = (model.weight - at_end).abs().max()
    assert moved < 2 * (ahead - before).abs().max() + 1e-3


def test_a_rule_that_does_not_hear_it_says_so() -> None:
    sections = {"rules": {"update": {"kind": "layer_lstm", "hidden": 4}}}
    config = check(TrainConfig, own_config() | sections, "own")
    rule = LearnedRule(meta_optimizer(config), config)
    with pytest.warns(UserWarning, match="horizon: .* does not hear how many steps"):
        metaopt.LearnedOptimizer(nn.Linear(4, 2), rule, horizon=7)


def test_it_is_heard_in_higher_too() -> None:
    rule = eigen_rule()
    model, optimizer = optimizer_of(rule, 4)
    with higher.innerloop_ctx(model, optimizer, track_higher_grads=False) as (f, stepped):
        for _ in range(3):
            stepped.step(f(torch.ones(3, 4)).square().mean())
        found = f.weight.detach().clone()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(3, 4)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    torch.testing.assert_close(found, model.weight.detach())


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


def test_a_horizon_that_lies_behind_already_is_told_once() -> None:
    model, optimizer = optimizer_of(eigen_rule(), None)
    trained(optimizer, model, 3)
    optimizer.horizon = 2
    with pytest.warns(PastHorizonWarning, match=r"horizon: step 4 is past the 2 .* was told"):
        trained(optimizer, model, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="horizon:")
        trained(optimizer, model, 1)
    optimizer.horizon = "soon"  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"horizon: found 'soon', expected the whole number"):
        trained(optimizer, model, 1)


def test_a_training_that_goes_on_past_its_horizon_is_told() -> None:
    rule = eigen_rule()
    model, optimizer = optimizer_of(rule, None)
    trained(optimizer, model, 5)
    other_model, other = optimizer_of(rule, 3)
    other.load_state_dict(optimizer.state_dict())
    with pytest.warns(PastHorizonWarning, match=r"horizon: step 6 is past the 3"):
        trained(other, other_model, 1)
