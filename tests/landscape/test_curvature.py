"""Curvature against torch.func, and directions that solve their damped systems."""

from __future__ import annotations

import pytest
import torch
from support import regression, signed
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.landscape.curvature import (
    CURVATURES,
    AbsoluteHessian,
    GaussNewton,
    LastLayer,
    cosine,
    flat,
    hessian,
    jacobian,
)
from metaopt.tasks.regression import TaskBatch

TASKS = regression((5, 4, 3), samples=6, seed=1)
SQUARE = regression((4, 4, 4), samples=4, seed=2)


def shaped(row: Tensor, weights: Weights) -> Weights:
    parts = row.split([W[0].numel() for W in weights])
    return tuple(part.reshape(1, *W.shape[1:]) for part, W in zip(parts, weights, strict=True))


def one(tasks: TaskBatch, b: int) -> TaskBatch:
    return tasks.select(slice(b, b + 1))


@pytest.mark.parametrize("b", range(2))
def test_hessian_and_jacobian_are_those_of_torch(b: int) -> None:
    task = one(TASKS, b)

    def loss(row: Tensor) -> Tensor:
        return task.loss(shaped(row, task.initial))[0]

    def outputs(row: Tensor) -> Tensor:
        return task.outputs(shaped(row, task.initial)).flatten()

    row = flat(task.initial)[0]
    torch.testing.assert_close(
        hessian(TASKS, TASKS.initial)[b], torch.func.hessian(loss)(row), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        jacobian(TASKS, TASKS.initial)[b], torch.func.jacrev(outputs)(row), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("damping", [1e-1, 1e-3])
def test_directions_solve_their_damped_systems(damping: float) -> None:
    g = flat(TASKS.observe(TASKS.initial).grads)
    J = jacobian(TASKS, TASKS.initial)
    # |A| from the singular value decomposition, another way than from eigenvalues.
    _, S, Vh = torch.linalg.svd(hessian(TASKS, TASKS.initial))
    matrices = {GaussNewton: J.mT @ J, AbsoluteHessian: Vh.mT @ (S[..., None] * Vh)}
    for kind, matrix in matrices.items():
        largest = torch.linalg.matrix_norm(matrix, ord=2)[:, None]
        d = kind(TASKS, TASKS.initial).direction(damping)
        found = (matrix @ d[..., None])[..., 0] + damping * largest * d
        torch.testing.assert_close(found, -g, rtol=1e-7, atol=1e-7)


def test_newton_in_the_last_layer_alone_lands_on_its_least_loss() -> None:
    d = LastLayer(TASKS, TASKS.initial).direction(1e-13)
    W1, W2 = TASKS.initial
    split = W1[0].numel()
    assert torch.equal(d[:, :split], torch.zeros_like(d[:, :split]))
    moved = (W1, W2 + d[:, split:].reshape(W2.shape))
    H = TASKS.observe(TASKS.initial).inputs[1]
    best = (W1, TASKS.Y @ torch.linalg.pinv(H))
    torch.testing.assert_close(TASKS.loss(moved), TASKS.loss(best), rtol=1e-8, atol=1e-10)


def test_undamped_gauss_newton_goes_straight_to_the_targets_in_outputs() -> None:
    d = GaussNewton(SQUARE, SQUARE.initial).direction(1e-12)
    in_outputs = (jacobian(SQUARE, SQUARE.initial) @ d[..., None])[..., 0]
    wanted = (SQUARE.Y - SQUARE.outputs(SQUARE.initial)).flatten(1)
    torch.testing.assert_close(cosine(in_outputs, wanted), torch.ones(2).double())


@pytest.mark.parametrize("name", list(CURVATURES))
def test_cosines(name: str) -> None:
    d = CURVATURES[name](TASKS, TASKS.initial).direction(1e-3)
    torch.testing.assert_close(cosine(d, 3 * d), torch.ones(2).double())
    torch.testing.assert_close(cosine(d, -d), -torch.ones(2).double())
    other = signed(*d.shape, seed=5)
    other -= (other * d).sum(1, keepdim=True) / d.square().sum(1, keepdim=True) * d
    torch.testing.assert_close(cosine(d, other), torch.zeros(2).double())
