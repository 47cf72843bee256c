"""The least loss: its bound, and the search against exact solutions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import full_rank, regression, signed

from metaopt.tasks.least_loss import least_loss, rank_bound
from metaopt.tasks.regression import TaskBatch


def test_bound_is_the_best_approximation_of_the_rank() -> None:
    tasks = regression([6, 2, 4], samples=5, seed=0)
    U, singular, Vh = torch.linalg.svd(tasks.Y, full_matrices=False)
    best = U[:, :, :2] * singular[:, None, :2] @ Vh[:, :2]
    wanted = 0.5 * (tasks.Y - best).square().sum(dim=(-2, -1))
    torch.testing.assert_close(rank_bound(tasks), wanted)
    assert (rank_bound(tasks) < tasks.loss(tasks.initial)).all()


def test_search_reaches_the_bound_where_it_can_be_reached() -> None:
    tasks = regression([6, 2, 4], samples=5, seed=0, batch=4)
    found = least_loss(tasks, iterations=150, restarts=2)
    torch.testing.assert_close(found.loss, rank_bound(tasks), rtol=1e-9, atol=0)
    assert found.by_start.shape == (3, 4)
    assert torch.equal(found.by_start.min(0).values, found.loss)


def test_search_reaches_zero_with_more_samples_than_inputs() -> None:
    # Y is what a network of these shapes puts out, near to the one that the search starts from.
    tasks = regression([3, 2, 4], samples=8, seed=0, batch=6)
    teacher = tuple(W + 0.1 * signed(*W.shape, seed=7) for W in tasks.initial)
    planted = replace(tasks, Y=tasks.outputs(teacher))
    found = least_loss(planted, iterations=200)
    assert (found.loss < 1e-20).all()
    assert (found.gradient_norm < 1e-8).all()
    assert (planted.loss(planted.initial) > 1e-3).all()


def test_loss_never_rises() -> None:
    tasks = regression([3, 2, 4], samples=8, seed=3, batch=6)
    curve = torch.stack([least_loss(tasks, iterations=i).loss for i in range(12)])
    assert (curve.diff(dim=0) <= 0).all()
    assert (curve[-1] < curve[0]).all()
    assert (curve[0] <= tasks.loss(tasks.initial)).all()
    assert (curve[-1] >= rank_bound(tasks)).all()


def test_gradient_of_the_eliminated_loss() -> None:
    # Orthonormal rows: the basis that the norm refers to is X itself, turned.
    X = torch.linalg.qr(full_rank(2, 8, 3, seed=5)).Q.mT.contiguous()
    given = regression([3, 2, 4], samples=8, seed=0)
    tasks = TaskBatch(X, given.Y, given.initial, given.s)
    W1 = tasks.initial[0].clone().requires_grad_()
    H = tasks.s(W1 @ X)
    error = tasks.Y - tasks.Y @ torch.linalg.pinv(H) @ H
    loss = 0.5 * error.square().sum(dim=(-2, -1))
    (gradient,) = torch.autograd.grad(loss.sum(), W1)
    found = least_loss(tasks, iterations=0)
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.gradient_norm, torch.linalg.matrix_norm(gradient))


@pytest.mark.parametrize(("sizes", "samples"), [([4, 3, 3, 2], 4), ([4, 5, 2], 4)])
def test_search_says_what_it_is_for(sizes: list[int], samples: int) -> None:
    with pytest.raises(ValueError, match="one hidden layer of at most as many units as samples"):
        least_loss(regression(sizes, samples=samples, seed=0))
