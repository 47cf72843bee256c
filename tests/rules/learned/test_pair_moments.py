"""Second moments of pairs that come, go and change, and how long squares are remembered."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_basis import data, factorised, linear, rule, similarities, updates
from paired import observed, pairs_in
from torch import nn

import metaopt
from metaopt.rules.base import State
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.learned import pair_moments
from metaopt.rules.learned.eigen import EigenUpdateLSTM
from metaopt.rules.learned.eigen_means import LATER, LONGEST, Memory


def test_a_pair_that_stays_is_stepped_entry_by_entry() -> None:
    """Without a frame on either side, the first step of Adam has entries of one size."""
    net = factorised()
    pairs = pairs_in(net, 24)
    seen = observed(net, pairs, data(0, 24))
    own = (4, 1e-9, ("adam",), None, 0.0, 4, [0.5], Memory(5.0), True, 0, "u")
    optimizer = MetaOptimizer({"update": EigenUpdateLSTM(*own).double()}, None)
    steps = {}
    for name, shown in (("pairs", seen), ("none", replace(seen, pairs=None))):
        proposal, _ = optimizer.propose(shown, optimizer.initial_rule_states(shown))
        assert proposal.updates is not None
        steps[name] = proposal.updates[0]
    sizes = {name: step.abs() for name, step in steps.items()}
    # But for entries near the floor below which gradients are rounding.
    assert (sizes["pairs"] / sizes["pairs"].max() - 1).abs().median() < 1e-3
    assert sizes["none"].std() > 0.1 * sizes["none"].mean()


def test_a_teleport_does_not_lose_squares_that_came_before_the_pairs() -> None:
    """After gradients without known pairs, a rotation keeps v's sum, and means are turned by it."""
    net = factorised()
    pairs = pairs_in(net, 24)
    own = updates()
    seen = observed(net, pairs, data(0, 24))
    state = own.initial_state(seen)
    for i in range(12):
        one = observed(net, pairs, data(i, 24))
        _, found = own.propose(replace(one, pairs=None), without_moments(state))
        state = state | found
    move = similarities(pairs, 0, sized=False)
    turned = own.turned(state, move, seen.weights)
    sizes = [w[0].numel() for w in seen.weights]
    for before, after in zip(state["v"].split(sizes, 2), turned["v"].split(sizes, 2), strict=True):
        assert before.sum() > 0
        torch.testing.assert_close(after.sum(), before.sum())
    norms = [state["m"].norm(), turned["m"].norm()]
    torch.testing.assert_close(norms[1], norms[0])


def without_moments(state: State) -> State:
    """What a run that knows no pairs keeps."""
    return {name: x for name, x in state.items() if not pair_moments.is_kept(name)}


def trained_for(optimizer: metaopt.LearnedOptimizer, net: nn.Module, steps: range) -> list[float]:
    """Losses before each step."""
    found = []
    for i in steps:
        optimizer.zero_grad()
        loss = (net(data(i, 24, 16)) - data(i, 24, 16)[:, :7]).square().mean()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def test_a_pair_that_comes_late_goes_on_from_what_is_known() -> None:
    """The half that was trained before keeps its squares; V begins as their diagonal."""
    torch.manual_seed(0)
    net = factorised()
    first, second = linear(net)
    quiet = rule(**{"pairs": "moved"})
    second.requires_grad_(False)
    with pytest.warns(UserWarning, match="updates only"):
        optimizer = metaopt.LearnedOptimizer(net, quiet)
    before = trained_for(optimizer, net, range(60))
    second.requires_grad_(True)
    optimizer.add_param_group({"params": list(second.parameters())})
    assert optimizer.teleports_off is None
    weights = first.weight.detach().clone()
    outputs = net(data(0, 24)).detach()
    trained_for(optimizer, net, range(60, 61))
    state = optimizer.state[first.weight]
    v, key = state["update.v"][0], "update.second0.0"
    torch.testing.assert_close(state[key].diagonal(dim1=-2, dim2=-1)[0, 0].mT, v)
    assert v.mean() > 0
    # A step like those before it, and no larger.
    assert (net(data(0, 24)).detach() - outputs).norm() < outputs.norm()
    assert not torch.equal(weights, first.weight)
    after = trained_for(optimizer, net, range(61, 90))
    assert max(after) < 2 * before[0]


@pytest.mark.parametrize("saved_with_model", [True, False])
def test_a_run_goes_on_where_pairs_are_known_no_more_or_not_yet(saved_with_model: bool) -> None:
    """States with second moments load where there are none, and the other way round."""
    torch.manual_seed(0)
    net = factorised()
    both: dict[bool, Any] = {True: net, False: list(net.parameters())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = metaopt.LearnedOptimizer(both[saved_with_model], rule())
        losses = trained_for(optimizer, net, range(40))
        other = metaopt.LearnedOptimizer(both[not saved_with_model], rule())
        other.load_state_dict(optimizer.state_dict())
        after = trained_for(other, net, range(40, 80))
    assert max(after) < losses[0]
    frames = other.state[linear(net)[0].weight]["update.frames"]
    assert torch.isfinite(frames).all()


@given(st.floats(1.0, 20.0), st.integers(1, 60))
def test_what_is_remembered_of_a_constant_is_the_constant(part: float, steps: int) -> None:
    """The running mean over its correction is 1, and its decays are those that are said."""
    memory, mean = Memory(part), 0.0
    for t in range(1, steps + 1):
        decay = memory.decay(t)
        assert decay == max(0.0, 1 - max(part / (t + LATER), 1 / LONGEST))
        mean = decay * mean + (1 - decay)
    assert mean / memory.start(steps) == pytest.approx(1, abs=1e-12)


def test_steady_memory_forgets_a_hundredth_a_step() -> None:
    assert Memory().decay(7) == 0.99
    assert Memory().start(7) == 1 - 0.99**7
