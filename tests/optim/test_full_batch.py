"""Teleports through the data: where the user says that it is all there is, and on all of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import models
import pytest
import torch
from cases import learned_rule
from models import Problem, equal, take_steps
from torch import Tensor, nn

import metaopt

Step = Callable[[Problem, metaopt.LearnedOptimizer], None]
STEPS = 4


def problem() -> Problem:
    return models.chain().to(torch.float64)


def loss(here: Problem, rows: slice | Tensor = slice(None)) -> Tensor:
    """A sum, so that the gradients of parts add up to that of the whole."""
    return 0.5 * (here.model(here.x[rows]) - 1).square().sum()


def whole(here: Problem, optimizer: metaopt.LearnedOptimizer) -> None:
    optimizer.zero_grad()
    loss(here).backward()
    optimizer.step()


def micro_batches(here: Problem, optimizer: metaopt.LearnedOptimizer) -> None:
    optimizer.zero_grad()
    for start in range(0, 4, 2):
        loss(here, slice(start, start + 2)).backward()
    optimizer.step()


def single_rows(here: Problem, optimizer: metaopt.LearnedOptimizer) -> None:
    optimizer.zero_grad(set_to_none=False)
    torch.stack([loss(here, slice(i, i + 1)) for i in range(4)]).sum().backward()
    optimizer.step()


class Named(nn.Module):
    """The chain of ``models``, called by name and in place."""

    def __init__(self, chain: nn.Module) -> None:
        super().__init__()
        self.first, _, self.last = chain.children()
        self.between = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(input=self.between(self.first(input=x)))


def named(here: Problem, optimizer: metaopt.LearnedOptimizer) -> None:
    """Layers that are given their input by its name; the passes of another model of theirs."""
    optimizer.zero_grad()
    (0.5 * (Named(here.model)(here.x) - 1).square().sum()).backward()
    optimizer.step()


def shuffled(here: Problem, optimizer: metaopt.LearnedOptimizer) -> None:
    optimizer.zero_grad()
    rows = torch.randperm(4, generator=torch.Generator().manual_seed(int(1e6 * loss(here))))
    loss(here, rows).backward()
    optimizer.step()


def validated(here: Problem, optimizer: metaopt.LearnedOptimizer) -> None:
    """Forward passes with gradients that lead nowhere, before and after."""
    here.model(here.x + 1)
    optimizer.zero_grad()
    loss(here).backward()
    here.model(here.x - 1)
    optimizer.step()


def thrown_away(here: Problem, optimizer: metaopt.LearnedOptimizer) -> None:
    """A gradient of other data that is set to zero, in either way."""
    for to_none in (True, False):
        here.model(here.x + 1).sum().backward()
        optimizer.zero_grad(set_to_none=to_none)
    loss(here).backward()
    optimizer.step()


def refilled(here: Problem, optimizer: metaopt.LearnedOptimizer) -> None:
    """The memory of the batch holds something else by the time of the step."""
    data = here.x.clone()
    optimizer.zero_grad()
    loss(here).backward()
    here.x.zero_()
    optimizer.step()
    here.x.copy_(data)


def taken(step: Step, full_batch: bool = True) -> tuple[Problem, metaopt.LearnedOptimizer]:
    here = problem()
    rule = learned_rule("coordinate_directions")
    optimizer = metaopt.LearnedOptimizer(here.model, rule, full_batch=full_batch)
    for _ in range(STEPS):
        step(here, optimizer)
    return here, optimizer


@pytest.mark.parametrize(
    "step", [micro_batches, single_rows, named, shuffled, validated, thrown_away, refilled]
)
def test_however_the_data_comes_it_is_the_same_step(step: Step) -> None:
    (one, _), (other, optimizer) = taken(whole), taken(step)
    assert optimizer.state_dict()["teleports_off"] is None
    for a, b in zip(one.weights(), other.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def still() -> metaopt.LearnedRule:
    """Teleports alone."""
    rule = learned_rule("coordinate_lstm")
    with torch.no_grad():
        for parameter in rule.optimizer.rules["update"].parameters():
            parameter.zero_()
    return rule


def changed_by_hand(here: Problem, factor: float) -> None:
    for p in here.model.parameters():
        p.data.mul_(factor)


def test_weights_changed_by_hand_do_not_matter() -> None:
    """As decay, noise and SAM do between the forward pass and the step."""
    here = problem()
    optimizer = metaopt.LearnedOptimizer(here.model, still(), full_batch=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(here).backward()
        changed_by_hand(here, 0.5)
        optimizer.zero_grad()
        loss(here).backward()
        changed_by_hand(here, 1.6)
        before, outputs = here.weights(), here.model(here.x).detach()
        optimizer.step()
        assert not equal(before, here.weights())
        torch.testing.assert_close(here.model(here.x), outputs, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:updates only:UserWarning")
@pytest.mark.parametrize("step", [whole, micro_batches, validated])
def test_unless_it_is_said_outputs_on_other_data_stay(step: Step) -> None:
    here = problem()
    optimizer = metaopt.LearnedOptimizer(here.model, still())
    before = here.weights()
    for _ in range(STEPS):
        step(here, optimizer)
    assert equal(before, here.weights())


def test_it_is_asked_for_in_one_line() -> None:
    with pytest.warns(UserWarning, match="updates only.* say full_batch=True") as caught:
        metaopt.LearnedOptimizer(problem().model, learned_rule("coordinate_lstm"))
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    # Nothing else needs it.
    for kind in ("coordinate_lstm_update", "layer_units"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metaopt.LearnedOptimizer(problem().model, learned_rule(kind))


@pytest.mark.parametrize("late", [1, 3])
def test_where_it_is_not_true_teleports_end(late: int) -> None:
    here = problem()
    optimizer = metaopt.LearnedOptimizer(here.model, still(), full_batch=True)
    take_steps(here, optimizer, late)
    here.x = here.x[:3]
    here.labels = here.labels[:3]
    here.backward()
    before = here.weights()
    with pytest.warns(UserWarning, match="the data changes from step to step"):
        optimizer.step()
    assert equal(before, here.weights())
    take_steps(here, optimizer, 1)
    assert equal(before, here.weights())


def test_gradients_of_unseen_passes_carry_no_teleports() -> None:
    here = problem()
    optimizer = metaopt.LearnedOptimizer(here.model, still(), full_batch=True)
    for p in here.model.parameters():
        p.grad = torch.ones_like(p)
    before = here.weights()
    with pytest.raises(RuntimeError, match="needs to see the forward and backward pass"):
        optimizer.step()
    assert equal(before, here.weights())


@pytest.mark.filterwarnings("ignore:updates only:UserWarning")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_state_says_nothing_of_the_data(before: bool, after: bool) -> None:
    here, optimizer = taken(whole, before)
    rule = learned_rule("coordinate_directions")
    resumed = metaopt.LearnedOptimizer(here.model, rule, full_batch=after)
    resumed.load_state_dict(models.saved(optimizer.state_dict()))
    assert (resumed.teleports_off is None) is after
    whole(here, resumed)
    assert (resumed.state_dict()["teleports_off"] is None) is after
    assert all(bool(W.isfinite().all()) for W in here.weights())
