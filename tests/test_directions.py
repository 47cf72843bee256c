"""Directions: what the outputs of a learned network are coefficients of, and where rules start."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    LocalUpdateLSTM,
    Rule,
)
from metaopt.rules.coordinate import HEAD_BOUND
from metaopt.rules.directions import (
    FREE_STEP,
    Basis,
    GeneratorEntries,
    NaturalSteps,
    UpdateEntries,
    Whitening,
)
from metaopt.rules.features import Seen
from metaopt.rules.flattened import StatefulGradient
from metaopt.symmetry import (
    BoundedNorm,
    Exponential,
    FreeVolume,
    KeptVolume,
    Refuse,
    TeleportEngine,
    ThroughData,
    Volume,
)
from metaopt.tasks import TaskBatch

SIZES = [5, 4, 3]
DEEP_SIZES = [4, 3, 5, 2]
HIDDEN, SCALE = 4, 0.1
layer_sizes = st.lists(st.integers(1, 5), min_size=3, max_size=5)
both_sizes = pytest.mark.parametrize("sizes", [SIZES, DEEP_SIZES], ids=["2 layers", "3 layers"])


def seen(tasks: TaskBatch) -> Seen:
    return Seen(tasks.observe(tasks.initial))


def solved(tasks: TaskBatch) -> TaskBatch:
    """The same task with its outputs as targets: no residual, no gradient."""
    return TaskBatch(tasks.X, tasks.outputs(tasks.initial), tasks.initial, tasks.s)


def by_layer(rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
    return list(rows.split(list(counts), dim=-1))


# The directions.


@FEW
@given(sizes=layer_sizes, seed=seeds)
def test_natural_steps_and_their_sizes(sizes: list[int], seed: int) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    at = seen(tasks)
    found = NaturalSteps()(at)
    counts = [W[0].numel() for W in tasks.initial]
    assert found.shaped.shape == (2, 1, sum(counts))
    assert found.sizes.shape == (2, 2, sum(counts))
    outputs = tasks.outputs(tasks.initial)
    wrong, said = (outputs - tasks.Y).norm(dim=(1, 2)), outputs.norm(dim=(1, 2))
    share = wrong / (wrong.square() + said.square()).sqrt()
    layers = zip(
        by_layer(found.shaped, counts),
        by_layer(found.sizes, counts),
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
def test_generator_directions_are_as_long_as_the_identity(sizes: list[int], seed: int) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    at = seen(tasks)
    found = Whitening()(at)
    counts = [k * k for k in sizes[1:-1]]
    share = (at.log_residual * 5).exp()
    H = at.observation.inputs[1:]
    pairs = zip(by_layer(found.shaped, counts), by_layer(found.sizes, counts), H, strict=True)
    for (shaped, size, A), k in zip(pairs, sizes[1:-1], strict=True):
        norms = shaped.norm(dim=2)
        torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(k)))
        torch.testing.assert_close(size.norm(dim=2)[:, 0], share * math.sqrt(k))
        gram = A @ A.mT
        wanted = [gram, gram @ gram, torch.eye(k, dtype=torch.float64).expand_as(gram)]
        for direction, matrix in zip(shaped.unbind(1), wanted, strict=True):
            unit = matrix / matrix.norm(dim=(1, 2), keepdim=True) * math.sqrt(k)
            torch.testing.assert_close(direction.reshape(matrix.shape), unit)


@both_sizes
def test_entries_are_themselves(sizes: list[int]) -> None:
    at = seen(regression(sizes, samples=4, seed=0))
    weights = sum(a * b for a, b in pairwise(sizes))
    for basis, count in (
        (UpdateEntries(), weights),
        (GeneratorEntries(), sum(k * k for k in sizes[1:-1])),
    ):
        found = basis(at)
        assert found.shaped.shape == (2, 0, count)
        assert torch.equal(found.sizes, torch.ones(2, 1, count, dtype=torch.float64))


@FEW
@given(sizes=layer_sizes, seed=seeds)
def test_directions_of_updates_vanish_with_the_residual(sizes: list[int], seed: int) -> None:
    at = seen(solved(regression(sizes, samples=4, seed=seed)))
    found = NaturalSteps()(at)
    assert torch.equal(found.shaped, torch.zeros_like(found.shaped))
    # The share of the outputs that is wrong ends at the floor of losses, 1e-30.
    for basis in (NaturalSteps(), Whitening()):
        outputs = float(at.observation.weights[-1].bmm(at.observation.inputs[-1]).norm())
        assert float(basis(at).sizes.max()) < 1e-13 * max(1, 1 / outputs)


@FEW
@given(sizes=layer_sizes, seed=seeds, exponent=st.floats(-12, -3))
def test_directions_of_updates_shrink_as_the_residual_does(
    sizes: list[int], seed: int, exponent: float
) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    right, small = tasks.outputs(tasks.initial), 10**exponent

    def directions(size: float) -> tuple[Tensor, Tensor]:
        near = TaskBatch(tasks.X, right + size * tasks.Y, tasks.initial, tasks.s)
        found = NaturalSteps()(seen(near))
        return found.shaped / size, found.sizes / size

    for found, wanted in zip(directions(small), directions(1e-3), strict=True):
        # To second order in the residual; what is left of it after rounding is relative to 1e-16.
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("zero", ["residual", "first layer", "last layer", "weights", "inputs"])
@pytest.mark.parametrize("basis", [NaturalSteps(), Whitening()], ids=["natural", "whitening"])
def test_directions_are_finite_at_zero(basis: Basis, zero: str, dtype: torch.dtype) -> None:
    tasks = regression(DEEP_SIZES, samples=4, seed=0)
    tasks = solved(tasks) if zero == "residual" else tasks
    emptied = {"first layer": [0], "last layer": [2], "weights": [0, 1, 2]}.get(zero, [])
    leaves = tuple(
        (W.to(dtype) * (layer not in emptied)).requires_grad_()
        for layer, W in enumerate(tasks.initial)
    )
    X = tasks.X.to(dtype) * (zero != "inputs")
    observation = TaskBatch(X, tasks.Y.to(dtype), leaves, tasks.s).observe(leaves)
    found = basis(Seen(observation))
    together = torch.cat([found.shaped, found.sizes], dim=1)
    assert together.isfinite().all()
    together.backward(signed(*together.shape, seed=7, dtype=dtype))
    assert all(W.grad is not None and W.grad.isfinite().all() for W in leaves)


# Where rules start.


def flattened(sizes: Sequence[int], basis: Basis) -> FlattenedRule:
    shapes = [(out, fan_in) for fan_in, out in pairwise(sizes)]
    kind = LocalUpdateLSTM if isinstance(basis, NaturalSteps | UpdateEntries) else GroupElementLSTM
    return kind(shapes, HIDDEN, StatefulGradient(), basis, SCALE, 0, "flat").double()


def update_rule(kind: str, sizes: Sequence[int]) -> Rule:
    if kind == "flattened":
        return flattened(sizes, NaturalSteps())
    return CoordinateUpdateLSTM(NaturalSteps(), HIDDEN, SCALE, 0, "coordinate").double()


@pytest.mark.parametrize("kind", ["coordinate", "flattened"])
@FEW
@given(sizes=layer_sizes, seed=seeds)
def test_an_untrained_update_is_half_a_natural_step(kind: str, sizes: list[int], seed: int) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    observation = tasks.observe(tasks.initial)
    rule = update_rule(kind, sizes)
    proposal, _ = rule.propose(observation, rule.initial_state(observation))
    assert proposal.updates is not None
    at = Seen(observation)
    directions = NaturalSteps()(at)
    known = torch.cat([directions.shaped, directions.sizes], dim=1).abs().sum(1)
    # |h| < 1, so that no coefficient is further than this from where its basis starts it.
    furthest = SCALE * HEAD_BOUND * (HIDDEN + 1)
    assert NaturalSteps.head_bound == HEAD_BOUND
    found = torch.cat([f.flatten(1) for f in proposal.updates], dim=1)
    distance = (found + 0.5 * directions.shaped[:, 0]).abs()
    assert (distance <= furthest * known * (1 + 1e-12)).all()
    assert float(distance.detach().max()) > 0


@pytest.mark.parametrize("kind", ["coordinate", "flattened"])
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
    rule: Rule = flattened(sizes, Whitening())
    if kind == "coordinate":
        rule = CoordinateGroupElementLSTM(Whitening(), HIDDEN, SCALE, 0, kind).double()
    proposal, _ = rule.propose(observation, rule.initial_state(observation))
    assert proposal.generators is not None
    furthest = SCALE * HEAD_BOUND * (HIDDEN + 1)
    for T in proposal.generators:
        # Four directions, each of norm sqrt(k) at most.
        norms = T.norm(dim=(1, 2))
        assert (norms <= 4 * furthest * math.sqrt(T.shape[-1])).all()
        assert (norms > 0).all()


# Whitening within reach.


def whitener(a: float, kind: str, sizes: Sequence[int]) -> Rule:
    """T = a (I - H H^T / c), whatever is seen: fixed coefficients."""
    rule: CoordinateGroupElementLSTM | FlattenedRule
    if kind == "coordinate":
        rule = CoordinateGroupElementLSTM(Whitening(), HIDDEN, SCALE, 0, kind).double()
        pairs = 1
    else:
        rule = flattened(sizes, Whitening())
        pairs = len(sizes) - 2
    coefficients = torch.tensor([-a, 0.0, a], dtype=torch.float64) / SCALE
    with torch.no_grad():
        rule.head.W.zero_()
        rule.head.b.zero_()
        rule.head.b[: 3 * pairs] = coefficients.repeat_interleave(pairs)
    return rule


@pytest.mark.parametrize("volume", [FreeVolume(), KeptVolume()], ids=["free", "kept"])
@pytest.mark.parametrize("kind", ["coordinate", "flattened"])
@pytest.mark.parametrize("sizes", [[6, 4, 3], [6, 5, 4, 3]], ids=["2 layers", "3 layers"])
def test_fixed_coefficients_whiten_the_activations(
    sizes: list[int], kind: str, volume: Volume
) -> None:
    """Each step exp(a (I - H H^T / c)) H is one toward orthonormal rows of H."""
    # As many samples as the last hidden layer has units: full rank, and an exact action.
    tasks = regression(sizes, samples=sizes[-2], seed=3)
    engine = TeleportEngine(
        ThroughData(), Exponential(2.0), volume, BoundedNorm(2.0), Refuse(1e-8), True
    )
    rules = {"update": GradientDescent(0.0), "teleport": whitener(0.25, kind, sizes)}
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


# Flattened rules: one coefficient a layer.


@pytest.mark.parametrize(
    "basis",
    [NaturalSteps(), Whitening(), UpdateEntries(), GeneratorEntries()],
    ids=lambda basis: type(basis).__name__,
)
@both_sizes
def test_the_combination_is_an_explicit_loop(sizes: list[int], basis: Basis) -> None:
    tasks = regression(sizes, samples=4, seed=0)
    at = seen(tasks)
    rule = flattened(sizes, basis)
    counts = rule.entries
    of_layers = signed(2, rule.outputs[0], seed=1)
    of_entries = signed(2, rule.outputs[1], seed=2)
    directions = basis(at)
    shaped, sizes_of = directions.shaped.shape[1], directions.sizes.shape[1]
    assert rule.outputs == [shaped * len(counts), sizes_of * sum(counts)]
    wanted = torch.zeros(2, sum(counts), dtype=torch.float64)
    for b in range(2):
        column = 0
        for layer, count in enumerate(counts):
            for _ in range(count):
                for d in range(shaped):
                    c = of_layers[b, d * len(counts) + layer]
                    wanted[b, column] += c * directions.shaped[b, d, column]
                for size in range(sizes_of):
                    c = of_entries[b, size * sum(counts) + column]
                    wanted[b, column] += c * directions.sizes[b, size, column]
                column += 1
    torch.testing.assert_close(rule._combination(of_layers, of_entries, at), wanted)
