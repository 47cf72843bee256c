"""Rules on directions: where they start, and what is within their reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from support import FEW, SIZES, both_sizes, layer_sizes, regression, relative_error, seeds, signed

from metaopt.rules.base import Rule
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.hand_made import GradientDescent
from metaopt.rules.learned.coordinate import (
    CoordinateGroupElementLSTM,
    CoordinateUpdateLSTM,
    InformedUpdateLSTM,
)
from metaopt.rules.learned.directions import (
    HEAD_BOUND,
    Basis,
    InformedSteps,
    NaturalSteps,
    Whitening,
)
from metaopt.rules.learned.features import Seen
from metaopt.rules.learned.flattened import (
    FlattenedRule,
    GroupElementLSTM,
    LocalUpdateLSTM,
    StatefulGradient,
)
from metaopt.rules.learned.sized import SizedGenerators
from metaopt.symmetry.actions import ThroughData
from metaopt.symmetry.limits import BoundedNorm
from metaopt.symmetry.maps import Exponential
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.engine import TeleportEngine, TeleportReport
from metaopt.teleport.guard import Refuse

HIDDEN, SCALE = 4, 0.1
NATURAL, INFORMED, WHITENING = NaturalSteps(0.5), InformedSteps(0.5), Whitening(0.5)


# Where rules start.


def flattened(sizes: Sequence[int], basis: Basis) -> FlattenedRule:
    shapes = [(out, fan_in) for fan_in, out in pairwise(sizes)]
    kind = LocalUpdateLSTM if isinstance(basis, NaturalSteps) else GroupElementLSTM
    return kind(shapes, HIDDEN, StatefulGradient(), basis, SCALE, 0, "flat").double()


def update_rule(kind: str, sizes: Sequence[int]) -> Rule:
    match kind:
        case "flattened":
            return flattened(sizes, NATURAL)
        case "informed":
            return InformedUpdateLSTM(INFORMED, HIDDEN, SCALE, 0, kind).double()
    return CoordinateUpdateLSTM(NATURAL, HIDDEN, SCALE, 0, kind).double()


every_update_rule = pytest.mark.parametrize("kind", ["coordinate", "informed", "flattened"])


@every_update_rule
@FEW
@given(sizes=layer_sizes, seed=seeds)
def test_an_untrained_update_is_half_a_natural_step(kind: str, sizes: list[int], seed: int) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    observation = tasks.observe(tasks.initial)
    rule = update_rule(kind, sizes)
    proposal, _ = rule.propose(observation, rule.initial_state(observation))
    assert proposal.updates is not None
    directions = (INFORMED if kind == "informed" else NATURAL).directions(Seen(observation))
    known = torch.cat([directions.shaped, directions.sizes], dim=1).abs().sum(1)
    # |h| < 1, so that no output is further than this from 0, and no coefficient from its start.
    furthest = SCALE * HEAD_BOUND * (HIDDEN + 1)
    assert NaturalSteps.head_bound == HEAD_BOUND
    found = torch.cat([f.flatten(1) for f in proposal.updates], dim=1)
    distance = (found + 0.5 * directions.shaped[:, 0]).abs()
    assert (distance <= furthest * known * (1 + 1e-12)).all()
    assert float(distance.detach().max()) > 0


@every_update_rule
def test_an_untrained_update_descends_whatever_the_scales(kind: str) -> None:
    for size in (1e-3, 1.0, 1e3):
        tasks = regression(SIZES, samples=4, seed=0)
        weights = tuple(W * size for W in tasks.initial)
        tasks = TaskBatch(tasks.X * size, tasks.Y * size**3, weights, tasks.s)
        rule = update_rule(kind, SIZES)
        optimizer = MetaOptimizer({"update": rule}, None)
        state = optimizer.initial_rule_states(tasks.observe(weights))
        losses = [tasks.loss(weights)]
        with torch.no_grad():
            for _ in range(20):
                taken = optimizer.step(weights, tasks.observe(weights), state, tasks)
                weights, state = taken.weights, taken.state
                losses.append(tasks.loss(weights))
        assert (losses[-1] < 0.9 * losses[0]).all()
        assert all((after < before).all() for before, after in pairwise(losses))


@pytest.mark.parametrize("kind", ["coordinate", "flattened"])
@both_sizes
def test_an_untrained_teleporter_hardly_moves(kind: str, sizes: list[int]) -> None:
    tasks = regression(sizes, samples=4, seed=0)
    observation = tasks.observe(tasks.initial)
    rule: Rule = flattened(sizes, WHITENING)
    if kind == "coordinate":
        rule = CoordinateGroupElementLSTM(WHITENING, HIDDEN, SCALE, 0, kind).double()
    proposal, _ = rule.propose(observation, rule.initial_state(observation))
    assert proposal.generators is not None
    furthest = SCALE * HEAD_BOUND * (HIDDEN + 1)
    for T, H in zip(proposal.generators, observation.inputs[1:], strict=True):
        k, gram = T.shape[-1], H @ H.mT
        # Three directions, each of norm sqrt(k) at most, and the multiple of I for each.
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)
        of_identity = math.sqrt(k) * gram.norm(dim=(1, 2)) / trace
        norms = T.norm(dim=(1, 2))
        assert (norms <= 3 * furthest * math.sqrt(k) * (1 + of_identity)).all()
        assert (norms > 0).all()


# One coefficient a layer.


@both_sizes
def test_coordinate_wise_rules_give_a_layer_the_mean_of_its_coordinates(sizes: list[int]) -> None:
    tasks = regression(sizes, samples=4, seed=0)
    at = Seen(tasks.observe(tasks.initial))
    rule = CoordinateGroupElementLSTM(WHITENING, HIDDEN, SCALE, 0, "mean").double()
    counts = [k * k for k in sizes[1:-1]]
    h = signed(2, HIDDEN, sum(counts), seed=3)
    outputs = SCALE * torch.einsum("of,bfn->bon", rule.head.W, h) + SCALE * rule.head.b[:, None]
    means = [part.mean(2) for part in outputs[:, :2].split(counts, dim=2)]
    wanted = WHITENING.combine(torch.stack(means, dim=2), outputs[:, 2:], counts, at)
    torch.testing.assert_close(rule.combination(h, h, counts, at), wanted)


# Whitening within reach.


def whitener(z: float, kind: str, sizes: Sequence[int]) -> Rule:
    """T ~ -(H H^T - c I), whatever is seen: fixed coefficients."""
    rule: CoordinateGroupElementLSTM | FlattenedRule
    if kind in FEATURE_WEIGHTS:
        return wired_whitener(FEATURE_WEIGHTS[kind])
    if kind == "coordinate":
        rule = CoordinateGroupElementLSTM(WHITENING, HIDDEN, SCALE, 0, kind).double()
        pairs = 1
    else:
        rule = flattened(sizes, WHITENING)
        pairs = len(sizes) - 2
    with torch.no_grad():
        rule.head.W.zero_()
        rule.head.b.zero_()
        rule.head.b[:pairs] = z / SCALE
    return rule


FEATURE_WEIGHTS = {"sized": -0.25, "sized, far too large": -5.0}
"""Of H H^T. Steps that are longer than their reach would throw eigenvalues to and fro."""


def wired_whitener(weight: float) -> Rule:
    """The same of entries with sizes of their own: one feature is enough, H H^T."""
    rule = CoordinateGroupElementLSTM(SizedGenerators(1.0), HIDDEN, 1.0, 0, "sized").double()
    with torch.no_grad():
        for tensor in (rule.head.W, rule.head.b, rule.wire.W, rule.wire.b):
            tensor.zero_()
        rule.wire.W[2, 0] = weight
    return rule


@pytest.mark.parametrize("kind", ["coordinate", "flattened", *FEATURE_WEIGHTS])
@pytest.mark.parametrize("sizes", [[6, 4, 3], [6, 5, 4, 3]], ids=["2 layers", "3 layers"])
def test_fixed_coefficients_whiten_the_activations(sizes: list[int], kind: str) -> None:
    """Each step exp(a (c I - H H^T)) H is one toward orthogonal rows of H, all of one length."""
    # As many samples as the last hidden layer has units: full rank, and an exact action.
    tasks = regression(sizes, samples=sizes[-2], seed=3)
    engine = TeleportEngine(ThroughData(), Exponential(2.0), BoundedNorm(2.0), Refuse(1e-8), True)
    rules = {"update": GradientDescent(0.0), "teleport": whitener(-0.55, kind, sizes)}
    optimizer = MetaOptimizer(rules, engine)
    weights, outputs = tasks.initial, tasks.outputs(tasks.initial)
    state = optimizer.initial_state(tasks, tasks.observe(weights))
    conditions = []
    with torch.no_grad():
        for _ in range(60):
            observation = tasks.observe(weights)
            last = observation.inputs[-1]
            conditions.append(torch.linalg.cond(last))
            taken = optimizer.step(weights, observation, state, tasks)
            assert isinstance(taken.report, TeleportReport)
            assert not taken.report.refused.any()
            weights, state = taken.weights, taken.state
    assert (conditions[0] > 5).all()
    assert (conditions[-1] < 1.001).all()
    assert relative_error(tasks.outputs(weights), outputs) < 1e-8
    # A unit step of the last layer over the curvature is Newton's: it solves that layer.
    at = Seen(tasks.observe(weights))
    solved_last = (*weights[:-1], weights[-1] - at.natural[-1])
    assert (tasks.loss(solved_last) < 1e-4 * tasks.loss(tasks.initial)).all()
