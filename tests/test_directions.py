"""Directions: what the outputs of a learned network are coefficients of, and where rules start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FEW, regression, relative_error, seeds, signed
from torch import Tensor

from metaopt.optimizers import GradientDescent, MetaOptimizer
from metaopt.rules import (
    CoordinateGroupElementLSTM,
    CoordinateUpdateLSTM,
    FlattenedRule,
    GroupElementLSTM,
    InformedUpdateLSTM,
    LocalUpdateLSTM,
    Rule,
)
from metaopt.rules.coordinate import HEAD_BOUND
from metaopt.rules.directions import (
    FREE_STEP,
    LARGEST_LOG_STEP,
    LARGEST_WHITENING,
    Basis,
    GeneratorEntries,
    InformedSteps,
    NaturalSteps,
    UpdateEntries,
    Whitening,
)
from metaopt.rules.features import Seen
from metaopt.rules.flattened import StatefulGradient
from metaopt.symmetry import BoundedNorm, Exponential, Refuse, TeleportEngine, ThroughData
from metaopt.tasks import TaskBatch

SIZES = [5, 4, 3]
DEEP_SIZES = [4, 3, 5, 2]
HIDDEN, SCALE = 4, 0.1
FREE = 0.5
layer_sizes = st.lists(st.integers(1, 5), min_size=3, max_size=5)
both_sizes = pytest.mark.parametrize("sizes", [SIZES, DEEP_SIZES], ids=["2 layers", "3 layers"])
NATURAL, INFORMED, WHITENING = NaturalSteps(FREE), InformedSteps(FREE), Whitening(FREE)
EVERY = [NATURAL, INFORMED, WHITENING, UpdateEntries(FREE), GeneratorEntries(FREE)]
every_basis = pytest.mark.parametrize("basis", EVERY, ids=lambda basis: type(basis).__name__)


def seen(tasks: TaskBatch) -> Seen:
    return Seen(tasks.observe(tasks.initial))


def solved(tasks: TaskBatch) -> TaskBatch:
    """The same task with its outputs as targets: no residual, no gradient."""
    return TaskBatch(tasks.X, tasks.outputs(tasks.initial), tasks.initial, tasks.s)


def counts_of(basis: Basis, sizes: Sequence[int]) -> list[int]:
    """Entries of each layer, or of each pair."""
    if isinstance(basis, NaturalSteps | UpdateEntries):
        return [a * b for a, b in pairwise(sizes)]
    return [k * k for k in sizes[1:-1]]


def by_layer(rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
    return list(rows.split(list(counts), dim=-1))


# The directions.


@FEW
@given(sizes=layer_sizes, seed=seeds)
def test_natural_steps_and_their_sizes(sizes: list[int], seed: int) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    at = seen(tasks)
    found = NATURAL.directions(at)
    counts = counts_of(NATURAL, sizes)
    assert found.shaped.shape == (2, 1, sum(counts))
    assert found.sizes.shape == (2, 2, sum(counts))
    outputs = tasks.outputs(tasks.initial)
    wrong, said = (outputs - tasks.Y).norm(dim=(1, 2)), outputs.norm(dim=(1, 2))
    share = wrong / (wrong.square() + said.square()).sqrt()
    layers = zip(
        by_layer(found.shaped, counts),
        by_layer(found.sizes / FREE, counts),
        at.natural,
        tasks.initial,
        strict=True,
    )
    for shaped, size, N, W in layers:
        torch.testing.assert_close(shaped[:, 0], N.flatten(1))
        of_N = N.square().mean((1, 2)).sqrt()[:, None].expand_as(size[:, 0])
        torch.testing.assert_close(size[:, 0], of_N)
        of_W = (FREE_STEP * share * W.square().mean((1, 2)).sqrt())[:, None].expand_as(size[:, 1])
        torch.testing.assert_close(size[:, 1], of_W)


@FEW
@given(sizes=layer_sizes, seed=seeds)
def test_informed_steps_are_natural_ones_times_powers(sizes: list[int], seed: int) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    at = seen(tasks)
    found, plain = INFORMED.directions(at), NATURAL.directions(at)
    assert torch.equal(found.sizes, plain.sizes)
    assert torch.equal(found.shaped[:, :1], plain.shaped)
    counts = counts_of(INFORMED, sizes)
    H = at.observation.inputs[1:]
    for layer, columns in enumerate(by_layer(found.shaped[:, 1:], counts)):
        of_last = layer == len(counts) - 1
        A = H[-1] if of_last else H[layer]
        gram = A @ A.mT
        for direction, power in zip(columns.unbind(1), (gram, gram @ gram), strict=True):
            # The mean square of S is 1 / k: sqrt(k) times S over its norm, over sqrt(k) again.
            S = power / power.norm(dim=(1, 2), keepdim=True) * math.sqrt(A.shape[1])
            N = at.natural[layer]
            wanted = N @ S if of_last else S @ N
            torch.testing.assert_close(direction, wanted.flatten(1))


@FEW
@given(sizes=layer_sizes, seed=seeds)
def test_generator_directions_are_as_long_as_the_identity(sizes: list[int], seed: int) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    at = seen(tasks)
    found = WHITENING.directions(at)
    counts = counts_of(WHITENING, sizes)
    share = (at.log_residual * 5).exp()
    H = at.observation.inputs[1:]
    pairs = zip(by_layer(found.shaped, counts), by_layer(found.sizes, counts), H, strict=True)
    for (shaped, size, A), k in zip(pairs, sizes[1:-1], strict=True):
        norms = shaped.norm(dim=2)
        torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(k)))
        torch.testing.assert_close(size.norm(dim=2)[:, 0], FREE * share * math.sqrt(k))
        gram = A @ A.mT
        for direction, matrix in zip(shaped.unbind(1), [gram, gram @ gram], strict=True):
            unit = matrix / matrix.norm(dim=(1, 2), keepdim=True) * math.sqrt(k)
            torch.testing.assert_close(direction.reshape(matrix.shape), unit)


@both_sizes
@pytest.mark.parametrize("basis", [UpdateEntries(FREE), GeneratorEntries(FREE)])
def test_entries_are_themselves(sizes: list[int], basis: Basis) -> None:
    at = seen(regression(sizes, samples=4, seed=0))
    counts = counts_of(basis, sizes)
    outputs = signed(2, 1, sum(counts), seed=1)
    none = outputs.new_empty(2, 0, len(counts))
    torch.testing.assert_close(basis.combine(none, outputs, counts, at), FREE * outputs[:, 0])


@FEW
@given(sizes=layer_sizes, seed=seeds)
def test_directions_of_updates_vanish_with_the_residual(sizes: list[int], seed: int) -> None:
    at = seen(solved(regression(sizes, samples=4, seed=seed)))
    for basis in (NATURAL, INFORMED):
        found = basis.directions(at)
        assert torch.equal(found.shaped, torch.zeros_like(found.shaped))
    # The share of the outputs that is wrong ends at the floor of losses, 1e-30.
    for known in (NATURAL, WHITENING):
        outputs = float(at.observation.weights[-1].bmm(at.observation.inputs[-1]).norm())
        assert float(known.directions(at).sizes.max()) < 1e-13 * max(1, 1 / outputs)


@FEW
@given(sizes=layer_sizes, seed=seeds, exponent=st.floats(-12, -3))
def test_directions_of_updates_shrink_as_the_residual_does(
    sizes: list[int], seed: int, exponent: float
) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    right, small = tasks.outputs(tasks.initial), 10**exponent
    # As long as the outputs are, which may be anything.
    wrong = tasks.Y * (right.norm(dim=(1, 2)) / tasks.Y.norm(dim=(1, 2)))[:, None, None]

    def directions(size: float) -> tuple[Tensor, Tensor]:
        near = TaskBatch(tasks.X, right + size * wrong, tasks.initial, tasks.s)
        found = INFORMED.directions(seen(near))
        return found.shaped / size, found.sizes / size

    for found, wanted in zip(directions(small), directions(1e-3), strict=True):
        # To second order in the residual; what is left of it after rounding is relative to 1e-16.
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("zero", ["residual", "first layer", "last layer", "weights", "inputs"])
@pytest.mark.parametrize(
    "basis", [NATURAL, INFORMED, WHITENING], ids=lambda basis: type(basis).__name__
)
def test_combinations_are_finite_at_zero(basis: Basis, zero: str, dtype: torch.dtype) -> None:
    tasks = regression(DEEP_SIZES, samples=4, seed=0)
    tasks = solved(tasks) if zero == "residual" else tasks
    emptied = {"first layer": [0], "last layer": [2], "weights": [0, 1, 2]}.get(zero, [])
    leaves = tuple(
        (W.to(dtype) * (layer not in emptied)).requires_grad_()
        for layer, W in enumerate(tasks.initial)
    )
    X = tasks.X.to(dtype) * (zero != "inputs")
    observation = TaskBatch(X, tasks.Y.to(dtype), leaves, tasks.s).observe(leaves)
    counts = counts_of(basis, DEEP_SIZES)
    of_layers = signed(2, basis.shaped, len(counts), seed=1, dtype=dtype).requires_grad_()
    of_entries = signed(2, basis.sizes, sum(counts), seed=2, dtype=dtype).requires_grad_()
    found = basis.combine(of_layers, of_entries, counts, Seen(observation))
    assert found.isfinite().all()
    found.backward(signed(*found.shape, seed=7, dtype=dtype))
    for leaf in (*leaves, of_layers, of_entries):
        assert leaf.grad is None or leaf.grad.isfinite().all()
    assert any(W.grad is not None for W in leaves)


# Coefficients and combinations.


def test_coefficients() -> None:
    z = torch.tensor([-1e3, -1.0, 0.0, 2.0, 1e3], dtype=torch.float64)
    largest = math.exp(LARGEST_LOG_STEP) / 2
    natural = [0.0, -math.exp(-1) / 2, -0.5, -math.exp(2) / 2, -largest]
    found = NATURAL.coefficients(z[None, None])
    torch.testing.assert_close(found[0, 0].tolist(), natural)
    both = INFORMED.coefficients(torch.stack([z, z, -z])[None])
    torch.testing.assert_close(both, torch.stack([found[0, 0], z, -z])[None])
    whitening = WHITENING.coefficients(torch.stack([z, z])[None])
    for own, bound in zip(whitening[0], LARGEST_WHITENING, strict=True):
        torch.testing.assert_close(own, bound * z.tanh())


@every_basis
@both_sizes
def test_the_combination_is_an_explicit_loop(sizes: list[int], basis: Basis) -> None:
    at = seen(regression(sizes, samples=4, seed=0))
    counts = counts_of(basis, sizes)
    of_layers = signed(2, basis.shaped, len(counts), seed=1)
    of_entries = signed(2, basis.sizes, sum(counts), seed=2)
    directions, c = basis.directions(at), basis.coefficients(of_layers)
    assert directions.shaped.shape == (2, basis.shaped, sum(counts))
    assert directions.sizes.shape == (2, basis.sizes, sum(counts))
    total = torch.zeros(2, sum(counts), dtype=torch.float64)
    for b in range(2):
        column = 0
        for layer, count in enumerate(counts):
            for _ in range(count):
                for d in range(basis.shaped):
                    total[b, column] += c[b, d, layer] * directions.shaped[b, d, column]
                for s in range(basis.sizes):
                    total[b, column] += of_entries[b, s, column] * directions.sizes[b, s, column]
                column += 1
    found = basis.combine(of_layers, of_entries, counts, at)
    torch.testing.assert_close(found, basis.project(total, at))


@pytest.mark.parametrize("free", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("kind", [NaturalSteps, InformedSteps, Whitening])
def test_free_is_a_factor_on_the_sizes_alone(kind: type[Basis], free: float) -> None:
    at = seen(regression(SIZES, samples=4, seed=0))
    found, plain = kind(free).directions(at), kind(1.0).directions(at)
    assert torch.equal(found.shaped, plain.shaped)
    torch.testing.assert_close(found.sizes, free * plain.sizes)


# Isometric generators.


@FEW
@given(sizes=layer_sizes, seed=seeds)
def test_projected_generators_are_isometric(sizes: list[int], seed: int) -> None:
    at = seen(regression(sizes, samples=4, seed=seed))
    counts = counts_of(WHITENING, sizes)
    entries = signed(2, sum(counts), seed=seed + 1)
    kept = WHITENING.project(entries, at)
    torch.testing.assert_close(WHITENING.project(kept, at), kept)
    parts = zip(by_layer(entries, counts), by_layer(kept, counts), sizes[1:-1], strict=True)
    for (before, after, k), H in zip(parts, at.observation.inputs[1:], strict=True):
        T, isometric = before.reshape(2, k, k), after.reshape(2, k, k)
        gram = H @ H.mT
        trace = torch.einsum("bij,bji->b", isometric, gram)
        assert float((trace / gram.norm(dim=(1, 2))).abs().max()) < 1e-13
        # Only a multiple of the identity is taken away.
        taken = T - isometric
        identity = torch.eye(k, dtype=torch.float64)
        torch.testing.assert_close(taken, taken[:, :1, :1] * identity)
        # Unchanged to first order: what is left shrinks with the square of the step.
        for small in (1e-2, 1e-4):
            moved = torch.linalg.matrix_exp(small * isometric) @ H
            growth = (moved.norm(dim=(1, 2)) / H.norm(dim=(1, 2)) - 1).abs()
            norm = isometric.norm(dim=(1, 2))
            assert (growth <= (small * norm).square() + 1e-14).all()


@both_sizes
def test_at_whitened_activations_and_without_residual_no_generator_is_left(
    sizes: list[int],
) -> None:
    tasks = solved(regression(sizes, samples=4, seed=0))
    observation = tasks.observe(tasks.initial)
    white = [torch.linalg.qr(signed(2, 9, k, seed=k)).Q.mT * 1.7 for k in sizes[1:-1]]
    at = Seen(replace(observation, inputs=(observation.inputs[0], *white)))
    counts = counts_of(WHITENING, sizes)
    found = WHITENING.combine(
        signed(2, 2, len(counts), seed=1), signed(2, 1, sum(counts), seed=2), counts, at
    )
    # The share of the outputs that is wrong ends at the floor of losses, 1e-30.
    assert float(found.abs().max()) < 1e-12


# Where rules start.


def flattened(sizes: Sequence[int], basis: Basis) -> FlattenedRule:
    shapes = [(out, fan_in) for fan_in, out in pairwise(sizes)]
    kind = LocalUpdateLSTM if isinstance(basis, NaturalSteps | UpdateEntries) else GroupElementLSTM
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
        state = rule.initial_state(tasks.observe(weights))
        state = {f"update.{key}": value for key, value in state.items()}
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
    at = seen(regression(sizes, samples=4, seed=0))
    rule = CoordinateGroupElementLSTM(WHITENING, HIDDEN, SCALE, 0, "mean").double()
    counts = counts_of(WHITENING, sizes)
    h = signed(2, HIDDEN, sum(counts), seed=3)
    outputs = SCALE * torch.einsum("of,bfn->bon", rule.head.W, h) + SCALE * rule.head.b[:, None]
    means = [part.mean(2) for part in by_layer(outputs[:, :2], counts)]
    wanted = WHITENING.combine(torch.stack(means, dim=2), outputs[:, 2:], counts, at)
    torch.testing.assert_close(rule.combination(h, counts, at), wanted)


# Whitening within reach.


def whitener(z: float, kind: str, sizes: Sequence[int]) -> Rule:
    """T ~ -(H H^T - c I), whatever is seen: fixed coefficients."""
    rule: CoordinateGroupElementLSTM | FlattenedRule
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


@pytest.mark.parametrize("kind", ["coordinate", "flattened"])
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
            assert taken.report is not None
            assert not taken.report.refused.any()
            weights, state = taken.weights, taken.state
    assert (conditions[0] > 5).all()
    assert (conditions[-1] < 1.001).all()
    assert relative_error(tasks.outputs(weights), outputs) < 1e-8
    # A unit step of the last layer over the curvature is Newton's: it solves that layer.
    at = Seen(tasks.observe(weights))
    solved_last = (*weights[:-1], weights[-1] - at.natural[-1])
    assert (tasks.loss(solved_last) < 1e-4 * tasks.loss(tasks.initial)).all()
