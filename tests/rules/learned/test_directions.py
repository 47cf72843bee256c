"""Directions: what the outputs of a learned network are coefficients of."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seen_directions import by_layer, counts_of, seen
from support import DEEP_SIZES, FEW, SIZES, both_sizes, layer_sizes, regression, seeds, signed
from torch import Tensor

from metaopt.rules.learned.directions import (
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
from metaopt.rules.learned.features import Seen
from metaopt.rules.learned.sized import SizedGenerators, SizedUpdates
from metaopt.tasks.regression import TaskBatch

FREE = 0.5
NATURAL, INFORMED, WHITENING = NaturalSteps(FREE), InformedSteps(FREE), Whitening(FREE)
OWN_SIZES = [SizedUpdates(FREE), SizedGenerators(FREE)]
EVERY = [NATURAL, INFORMED, WHITENING, UpdateEntries(FREE), GeneratorEntries(FREE)]
every_basis = pytest.mark.parametrize("basis", EVERY, ids=lambda basis: type(basis).__name__)


def solved(tasks: TaskBatch) -> TaskBatch:
    """The same task with its outputs as targets: no residual, no gradient."""
    return TaskBatch(tasks.X, tasks.outputs(tasks.initial), tasks.initial, tasks.s)


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
    "basis", [NATURAL, INFORMED, WHITENING, *OWN_SIZES], ids=lambda basis: type(basis).__name__
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


@pytest.mark.parametrize(
    "basis", [NATURAL, INFORMED, OWN_SIZES[0]], ids=lambda basis: type(basis).__name__
)
def test_what_has_no_gradient_stays(basis: Basis) -> None:
    tasks = regression([3, 4, 2], samples=3, seed=1)
    found = tasks.observe(tasks.initial)
    first = found.grads[0].clone()
    first[:, 1] = 0
    at = Seen(replace(found, grads=(first, *found.grads[1:])))
    counts = counts_of(basis, [3, 4, 2])
    layers, entries = (
        signed(2, basis.shaped, 2, seed=2),
        signed(2, basis.sizes, sum(counts), seed=3),
    )
    rows = basis.combine(layers, entries, counts, at)
    moved = by_layer(rows, counts)[0].reshape(first.shape) != 0
    assert torch.equal(moved, first != 0)


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
def test_nothing_is_free_where_it_is_not_known_what_is_wrong(sizes: list[int]) -> None:
    whole = seen(regression(sizes, samples=4, seed=0)).observation
    for told in (replace(whole, loss=None), replace(whole, inputs=()), whole):
        sizes_of_updates = NATURAL.directions(Seen(told)).sizes[:, 1]
        assert bool(
            (sizes_of_updates > 0).all() if told is whole else (sizes_of_updates == 0).all()
        )
    free = WHITENING.directions(Seen(replace(whole, loss=None))).sizes
    assert torch.equal(free, torch.zeros_like(free))
    assert bool((WHITENING.directions(Seen(whole)).sizes > 0).all())


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
