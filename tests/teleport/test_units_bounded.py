"""Scaling of hidden units stays within a bound that is known, over any number of steps."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import learned_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaopt.base import checkpoint
from metaopt.base.network import Weights
from metaopt.optim.learned import restore
from metaopt.rules.learned.unit import LARGEST_OFFSET, UnitScalingLSTM
from metaopt.symmetry.limits import BoundedNorm
from metaopt.symmetry.units import MAKES, READS, HiddenUnits
from metaopt.tasks.base import Observation
from metaopt.teleport.unit_engine import UnitEngine

WIDTH = 4


class Known:
    """What the engine is told."""

    network = None
    pairs = None

    def __init__(self, units: HiddenUnits) -> None:
        self.units = units


def chain(layers: int, seed: int) -> tuple[Weights, HiddenUnits]:
    """Random matrices of as many hidden layers, some entries of which are far from the others."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(WIDTH, WIDTH)] * (layers + 1)
    weights = tuple(
        torch.randn(1, *shape, generator=draw, dtype=torch.float64)
        * torch.randn(1, *shape, generator=draw, dtype=torch.float64).exp()
        for shape in shapes
    )
    return weights, HiddenUnits.of_chain(shapes)


def balances(weights: Weights, units: HiddenUnits) -> Tensor:
    """log(||w_read|| / ||w_make||) of each unit, [B, K]."""
    squares = tuple(W.square() for W in weights)
    return (units.sums(squares, READS).log() - units.sums(squares, MAKES).log()) / 2


def balanced(weights: Weights, units: HiddenUnits) -> Weights:
    """The point of the orbit at which all of them are 0."""
    for _ in range(20_000):
        B = balances(weights, units)
        if float(B.abs().max()) < 1e-10:
            return weights
        weights, _ = units.scaled(B / 4, weights)
    raise AssertionError("balancing did not converge")


def bound(layers: int) -> Tensor:
    """beta l (L + 1 - l) / 2 of each unit, [K]."""
    at = torch.arange(1, layers + 1, dtype=torch.float64)
    return (LARGEST_OFFSET * at * (layers + 1 - at) / 2).repeat_interleave(WIDTH)


def loud(seed: int) -> UnitScalingLSTM:
    """A rule that says anything: outputs far beyond what any training gives."""
    rule = UnitScalingLSTM(5, 1.0, 1.0, seed, "loud").double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in rule.parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.copy_(3 * noise)
        # Else c is 0 in half of the draws, and nothing moves.
        rule.head.b.view(-1)[0] = 5.0
    return rule


@settings(max_examples=10, deadline=None)
@given(layers=st.integers(1, 6), seed=st.integers(0, 10_000), limit=st.sampled_from([0.1, 10.0]))
def test_whatever_the_network_says_units_stay_near_equal_norms(
    layers: int, seed: int, limit: float
) -> None:
    weights, units = chain(layers, seed)
    weights = balanced(weights, units)
    engine, rule = UnitEngine(BoundedNorm(limit)), loud(seed)
    draw = torch.Generator().manual_seed(seed + 1)
    total, most, state = torch.zeros(1, units.count, dtype=torch.float64), 0.0, None
    for _ in range(200):
        grads = tuple(
            torch.randn(W.shape, generator=draw, dtype=torch.float64) / W.abs().clamp(min=1e-3)
            for W in weights
        )
        seen = Observation(weights, grads, (), None, units)
        state = rule.initial_state(seen) if state is None else state
        with torch.no_grad():
            proposal, state = rule.propose(seen, state)
        assert proposal.generators is not None
        weights, report = engine.teleport(weights, proposal.generators, Known(units))
        state = rule.scaled(state, report.t, report.log_factors)
        total = total + report.t
        most = max(most, float(total.abs().max()))
        assert bool((total.abs() <= bound(layers) + 1e-9).all())
    assert most > 0.01, "nothing moved"


def test_from_anywhere_units_come_back_to_equal_norms() -> None:
    """With offsets of 0 the way goes to the balanced point, and stays there."""
    start, units = chain(4, 3)
    goal = balanced(start, units)
    rule = UnitScalingLSTM(5, 1.0, 1.0, 0, "silent").double()
    with torch.no_grad():
        for parameter in rule.head.parameters():
            parameter.zero_()
        # c at its largest, and a = 0: towards equal norms.
        rule.head.b.copy_(torch.tensor([1e3, -1e3, 0.0]).reshape(rule.head.b.shape))
    engine, weights, state = UnitEngine(BoundedNorm(1.0)), start, None
    for _ in range(1000):
        seen = Observation(weights, weights, (), None, units)
        state = rule.initial_state(seen) if state is None else state
        with torch.no_grad():
            proposal, state = rule.propose(seen, state)
        assert proposal.generators is not None
        weights, _ = engine.teleport(weights, proposal.generators, Known(units))
    for W, wanted in zip(weights, goal, strict=True):
        torch.testing.assert_close(W, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", [0, 1])
def test_a_unit_that_nothing_makes_or_reads_stays(side: int) -> None:
    (first, second), units = chain(1, 5)
    weights = (first.clone(), second.clone())
    if side == 0:
        weights[0][:, 2] = 0
    else:
        weights[1][:, :, 2] = 0
    rule = UnitScalingLSTM(5, 1.0, 1.0, 1, "zero").double()
    seen = Observation(weights, (first, second), (), None, units)
    with torch.no_grad():
        proposal, _ = rule.propose(seen, rule.initial_state(seen))
    assert proposal.generators is not None
    (t,) = proposal.generators
    assert float(t[0, 2].abs()) == 0
    assert bool((t[0, [0, 1, 3]] != 0).all())


def test_a_rule_of_before_the_bound_says_so_and_is_bounded(tmp_path: Path) -> None:
    rule = learned_rule("layer_units")
    path = tmp_path / "old.safetensors"
    rule.save(path)
    content = checkpoint.read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore(path, content)
    with pytest.warns(UserWarning, match="without a bound"):
        restore(path, replace(content, metaopt_version="0.1.0"))


def test_units_are_known_on_the_cpu_under_any_default_device() -> None:
    with torch.device("meta"):
        units = HiddenUnits.of_chain([(3, 2), (2, 3)])
    assert all(s.unit.device.type == s.entries.device.type == "cpu" for s in units.stretches)
    with torch.device("meta"):
        assert units.within([True, False]).tolist() == [0.0, 0.0, 0.0]
