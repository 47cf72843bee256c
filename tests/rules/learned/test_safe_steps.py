"""Curvatures of layers bound those of Gauss-Newton, and natural steps do not overshoot."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FEW, layer_sizes, regression, relative_error, seeds, signed
from torch import Tensor

from metaopt.base.network import forward
from metaopt.rules.learned.features import Seen
from metaopt.tasks.base import Observation
from metaopt.tasks.regression import TaskBatch


def gauss_newton_block(tasks: TaskBatch, layer: int, b: int) -> Tensor:
    """J^T J of the outputs of one task with respect to one layer."""

    def outputs(W: Tensor) -> Tensor:
        weights = [w[b : b + 1] for w in tasks.initial]
        weights[layer] = W[None]
        return forward(weights, tasks.X[b : b + 1], tasks.s).outputs.flatten()

    J = torch.func.jacrev(outputs)(tasks.initial[layer][b]).flatten(1)
    return J.mT @ J


@FEW
@given(sizes=layer_sizes, seed=seeds, samples=st.integers(1, 5), slope=st.sampled_from([0.1, 1.0]))
def test_no_eigenvalue_of_gauss_newton_is_above_the_curvature(
    sizes: list[int], seed: int, samples: int, slope: float
) -> None:
    tasks = regression(sizes, samples=samples, seed=seed, slope=slope)
    curvatures = Seen(tasks.observe(tasks.initial)).curvatures
    assert curvatures.shape == (2, len(sizes) - 1)
    for layer in range(len(sizes) - 1):
        for b in range(2):
            largest = torch.linalg.eigvalsh(gauss_newton_block(tasks, layer, b))[-1]
            assert float(largest) <= float(curvatures[b, layer]) * (1 + 1e-12)


def test_the_curvature_is_reached() -> None:
    """One unit in each layer: the block is one number (times X X^T)."""
    tasks = regression([1, 1, 1, 1], samples=1, seed=0, slope=1.0)
    curvatures = Seen(tasks.observe(tasks.initial)).curvatures
    for layer in range(3):
        for b in range(2):
            torch.testing.assert_close(
                gauss_newton_block(tasks, layer, b)[0, 0], curvatures[b, layer]
            )


@FEW
@given(sizes=layer_sizes, seed=seeds)
def test_a_natural_step_of_one_layer_does_not_overshoot(sizes: list[int], seed: int) -> None:
    """The loss of a linear network is quadratic in each layer: up to two such steps descend."""
    tasks = regression(sizes, samples=4, seed=seed, slope=1.0)
    seen = Seen(tasks.observe(tasks.initial))
    for layer, N in enumerate(seen.natural):
        for step in (0.5, 1.0, 2.0):
            weights = list(tasks.initial)
            weights[layer] = weights[layer] - step * N
            assert (tasks.loss(weights) <= tasks.loss(tasks.initial) * (1 + 1e-12)).all()


def test_the_natural_step_of_whitened_inputs_is_newtons() -> None:
    tasks = regression([4, 3, 2], samples=6, seed=0)
    H = torch.linalg.qr(signed(2, 6, 3, seed=5)).Q.mT * 1.7
    W = tasks.initial[1]
    residual = W @ H - tasks.Y
    grads = (torch.zeros_like(tasks.initial[0]), residual @ H.mT)
    loss = 0.5 * residual.square().sum((1, 2))
    seen = Seen(Observation(tasks.initial, grads, (tasks.X, H), loss))
    best = tasks.Y @ torch.linalg.pinv(H)
    assert relative_error(W - seen.natural[1], best) < 1e-12
