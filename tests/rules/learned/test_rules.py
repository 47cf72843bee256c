"""Learned rules: symmetry of coordinate-wise ones, shapes of flattened ones."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learned_rules import (
    Make,
    coordinate_rule,
    every_basis,
    every_coordinate_basis,
    every_rule,
    flattened_rule,
)
from support import DEEP_SIZES, FEW, SIZES, both_sizes, regression, relative_error, seeds, signed
from torch import Tensor

from metaopt.base.config import load
from metaopt.base.network import Weights
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.rules.base import Proposal, Rule, ShapeMismatchError
from metaopt.rules.learned.features import Seen
from metaopt.rules.learned.flattened import SignedLogGradient, StatefulGradient
from metaopt.tasks.regression import TaskBatch

COORDINATE = ("update", "group", "step")


def proposals(rule: Rule, tasks: TaskBatch, start: Weights, steps: int = 4) -> list[Proposal]:
    """What a rule proposes along the trajectory that its own updates make."""
    weights, made = start, []
    state = rule.initial_state(tasks.observe(weights))
    with torch.no_grad():
        for _ in range(steps):
            observation = tasks.observe(weights)
            proposal, state = rule.propose(observation, state)
            made.append(proposal)
            updates = proposal.updates or tuple(-0.01 * G for G in observation.grads)
            weights = tuple(W + f for W, f in zip(weights, updates, strict=True))
    return made


def tensors(proposal: Proposal) -> tuple[Tensor, ...]:
    return (*(proposal.updates or ()), *(proposal.generators or ()))


# Coordinate-wise rules.


def relabel(weights: Weights, orders: Sequence[Tensor]) -> Weights:
    """The network with the units of its hidden layers in another order."""
    moved = list(weights)
    for layer, order in enumerate(orders):
        moved[layer] = moved[layer][:, order]
        moved[layer + 1] = moved[layer + 1][:, :, order]
    return tuple(moved)


@every_coordinate_basis
@pytest.mark.parametrize("kind", COORDINATE)
@FEW
@given(sizes=st.lists(st.integers(1, 5), min_size=3, max_size=5), seed=seeds)
def test_relabelled_units_get_relabelled_proposals(
    kind: str, basis: str, sizes: list[int], seed: int
) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    rule = coordinate_rule(kind, basis)
    orders = [signed(k, seed=seed + k).argsort() for k in sizes[1:-1]]
    plain = proposals(rule, tasks, tasks.initial)
    other = proposals(rule, tasks, relabel(tasks.initial, orders))
    for proposal, found in zip(plain, other, strict=True):
        wanted: list[Tensor] = []
        if proposal.updates is not None:
            wanted += relabel(proposal.updates, orders)
        if proposal.generators is not None:
            pairs = zip(proposal.generators, orders, strict=True)
            wanted += [T[:, order][:, :, order] for T, order in pairs]
        for mine, theirs in zip(tensors(found), wanted, strict=True):
            assert relative_error(mine, theirs) < 1e-9


@every_coordinate_basis
@pytest.mark.parametrize("kind", COORDINATE)
def test_one_coordinate_wise_rule_fits_any_network(kind: str, basis: str) -> None:
    rule = coordinate_rule(kind, basis)
    for sizes in ([5, 3, 2], [2, 7, 4], DEEP_SIZES, [3, 2, 4, 3, 2]):
        tasks = regression(sizes, samples=4, seed=0)
        for proposal in proposals(rule, tasks, tasks.initial):
            if proposal.updates is not None:
                assert [f.shape for f in proposal.updates] == [W.shape for W in tasks.initial]
            if proposal.generators is not None:
                assert [tuple(T.shape) for T in proposal.generators] == [
                    (2, k, k) for k in sizes[1:-1]
                ]
            assert all(tensor.isfinite().all() for tensor in tensors(proposal))
            assert all(tensor.abs().sum() > 0 for tensor in tensors(proposal))


@both_sizes
@every_basis
@every_rule
@pytest.mark.parametrize("kind", COORDINATE)
def test_trajectories_side_by_side_do_not_meet(
    kind: str, make: Make, basis: str, sizes: list[int]
) -> None:
    tasks = regression(sizes, samples=4, seed=0, batch=3)
    rule = make(kind, basis, sizes)
    together = proposals(rule, tasks, tasks.initial)
    for b in range(3):
        alone = tasks.select(slice(b, b + 1))
        for one, all_ in zip(proposals(rule, alone, alone.initial), together, strict=True):
            for mine, theirs in zip(tensors(one), tensors(all_), strict=True):
                assert relative_error(mine, theirs[b : b + 1]) < 1e-11


@every_basis
@every_rule
@pytest.mark.parametrize("kind", COORDINATE)
def test_rules_remember(kind: str, basis: str, make: Make) -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    rule = make(kind, basis, SIZES)
    observation = tasks.observe(tasks.initial)
    fresh = rule.initial_state(observation)
    first, state = rule.propose(observation, fresh)
    again, _ = rule.propose(observation, fresh)
    second, _ = rule.propose(observation, state)
    assert state.keys() == fresh.keys()
    for one, same, next_ in zip(tensors(first), tensors(again), tensors(second), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, next_)


# Flattened rules.


@pytest.mark.parametrize(
    ("file", "rule", "hidden", "outputs"),
    [
        ("lstm_update_tele", "update", 300, 800),
        ("lstm_update_tele", "teleport", 300, 400),
        ("lstm_update", "update", 300, 800),
        ("lstm_lr_tele", "step_teleport", 20, 401),
    ],
)
def test_flattened_rules_have_the_papers_shapes(
    file: str, rule: str, hidden: int, outputs: int
) -> None:
    optimizer = meta_optimizer(load(TrainConfig, f"paper/{file}.yaml"))
    found = {name: list(p.shape) for name, p in optimizer.rules[rule].named_parameters()}
    assert found == {
        "lstm.W_x.0": [4 * hidden, 800],
        "lstm.W_x.1": [4 * hidden, hidden],
        "lstm.W_h.0": [4 * hidden, hidden],
        "lstm.W_h.1": [4 * hidden, hidden],
        "lstm.b.0": [4 * hidden],
        "lstm.b.1": [4 * hidden],
        "head.W": [outputs, hidden],
        "head.b": [outputs],
    }


@pytest.mark.parametrize("kind", COORDINATE)
def test_flattened_rules_refuse_other_shapes(kind: str) -> None:
    tasks = regression([5, 4, 2], samples=4, seed=0)
    with pytest.raises(ShapeMismatchError, match="layer-wise rules fit any"):
        flattened_rule(kind, "entries", SIZES).initial_state(tasks.observe(tasks.initial))


def test_stateful_input_is_the_gradient_and_the_features_of_layers() -> None:
    tasks = regression(DEEP_SIZES, samples=4, seed=0)
    shapes = [(out, fan_in) for fan_in, out in pairwise(DEEP_SIZES)]
    at = Seen(tasks.observe(tasks.initial))
    stateful, plain = StatefulGradient(), SignedLogGradient()
    found = stateful(at)
    assert found.shape == (2, stateful.size(shapes))
    assert plain.size(shapes) == sum(out * fan_in for out, fan_in in shapes)
    assert torch.equal(found[:, : plain.size(shapes)], plain(at))
    assert stateful.size(shapes) > plain.size(shapes)
