"""Task families: exact gradients, streams that cannot meet, tasks named by their index."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FEW, regression, relative_error, seeds, slopes
from torch import Tensor

from metaopt.base.streams import Stream, generator
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.regression import RegressionFamily, TaskBatch, layer_shapes

STREAMS = (Stream.TRAIN, Stream.VALIDATION, Stream.TEST)
# Nine numbers of each layer and odd totals: draws do not fill whole blocks of the generator.
ODD = TaskConfig(width=3, inputs=5, outputs=2, samples=3)


def _sample(
    config: TaskConfig,
    start: int = 0,
    count: int = 4,
    stream: Stream = Stream.TRAIN,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> TaskBatch:
    return RegressionFamily(config).sample(stream, seed, start, count, dtype)


def _tensors(tasks: TaskBatch) -> tuple[Tensor, ...]:
    return (tasks.X, tasks.Y, *tasks.initial)


@FEW
@given(sizes=st.lists(st.integers(1, 5), min_size=3, max_size=5), seed=seeds, slope=slopes)
def test_gradient_is_exact(sizes: list[int], seed: int, slope: float) -> None:
    tasks = regression(sizes, samples=3, seed=seed, slope=slope)
    weights = tuple(W.clone().requires_grad_() for W in tasks.initial)
    wanted = torch.autograd.grad(tasks.loss(weights).sum(), weights)
    for found, expected in zip(tasks.observe(tasks.initial).grads, wanted, strict=True):
        assert relative_error(found, expected) < 1e-12


def test_gradient_is_differentiable() -> None:
    tasks = regression([3, 2, 4], samples=2, seed=0)

    def gradient(*weights: Tensor) -> tuple[Tensor, ...]:
        return tasks.observe(weights).grads

    weights = tuple(W.clone().requires_grad_() for W in tasks.initial)
    assert torch.autograd.gradcheck(gradient, weights)


@FEW
@given(seed=seeds, slope=slopes)
def test_loss_is_half_the_squared_distance(seed: int, slope: float) -> None:
    tasks = regression([4, 3, 2], samples=3, seed=seed, slope=slope)
    W1, W2 = (W[1] for W in tasks.initial)
    Z = W1 @ tasks.X[1]
    outputs = W2 @ (Z.clamp(min=0) + slope * Z.clamp(max=0))
    wanted = float((tasks.Y[1] - outputs).pow(2).sum()) / 2
    observed = tasks.observe(tasks.initial).loss
    assert observed is not None
    assert float(observed[1]) == pytest.approx(wanted, rel=1e-12)
    assert float(tasks.loss(tasks.initial)[1]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_a_task_is_named_by_its_index(distribution: str) -> None:
    config = ODD.model_copy(update={"data": distribution, "weights": distribution})
    eight, sixteen = _sample(config, count=8), _sample(config, count=16)
    later, alone = _sample(config, start=5, count=7), _sample(config, start=11, count=1)
    for first, both, rest, one in zip(
        _tensors(eight), _tensors(sixteen), _tensors(later), _tensors(alone), strict=True
    ):
        assert torch.equal(first, both[:8])
        assert torch.equal(rest, both[5:12])
        assert torch.equal(one, both[11:12])


def test_float32_is_float64_rounded() -> None:
    wide, narrow = _sample(ODD), _sample(ODD, dtype=torch.float32)
    for exact, rounded in zip(_tensors(wide), _tensors(narrow), strict=True):
        assert rounded.dtype == torch.float32
        assert torch.equal(exact.float(), rounded)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_streams_never_meet(seed: int) -> None:
    drawn = {
        stream: {
            value
            for start in (0, 10**6)
            for tensor in _tensors(_sample(ODD, start, 300, stream, seed))
            for value in tensor.flatten().tolist()
        }
        for stream in STREAMS
    }
    for one, other in combinations(STREAMS, 2):
        assert not drawn[one] & drawn[other]


@pytest.mark.parametrize("stream", list(Stream))
@pytest.mark.parametrize("block", [0, 2**32, 2**63 - 1])
def test_a_stream_has_its_own_part_of_the_counter(stream: Stream, block: int) -> None:
    draws = generator(stream, seed=5, block=block)
    draws.random(1000)
    counter: list[int] = draws.bit_generator.state["state"]["counter"].tolist()
    assert counter[2:] == [int(stream), 0]
    assert counter[:2] == [block + 250, 0]


@pytest.mark.parametrize("seed", [0, 2**53, 2**63 - 2])
def test_seeds_differ(seed: int) -> None:
    assert not torch.isin(_sample(ODD, seed=seed).X, _sample(ODD, seed=seed + 1).X).any()


def test_no_draw_serves_twice() -> None:
    values = torch.cat([tensor.flatten() for tensor in _tensors(_sample(ODD, count=50))])
    assert values.unique().numel() == values.numel()


def test_uniform_draws_fill_the_unit_interval() -> None:
    for tensor in _tensors(_sample(TaskConfig(), count=50)):
        assert 0 <= float(tensor.min()) < 1e-3
        assert 1 - 1e-3 < float(tensor.max()) < 1
        assert float(tensor.mean()) == pytest.approx(1 / 2, abs=0.01)
        assert float(tensor.var()) == pytest.approx(1 / 12, rel=0.03)


def test_gaussian_draws_have_the_stated_variance() -> None:
    config = TaskConfig(data="gaussian", weights="gaussian", inputs=30, samples=10, layers=3)
    tasks = _sample(config, count=50)
    variances = [1.0, 1.0, *(1 / W.shape[-1] for W in tasks.initial)]
    for tensor, variance in zip(_tensors(tasks), variances, strict=True):
        standardised = tensor / variance**0.5
        assert float(standardised.mean()) == pytest.approx(0, abs=0.04)
        assert float(standardised.var()) == pytest.approx(1, rel=0.04)
        assert float((standardised.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.02)


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_initial_weights_have_the_configured_shapes(layers: int) -> None:
    config = TaskConfig(layers=layers, width=3, inputs=5, outputs=2, samples=4)
    tasks = _sample(config, count=6)
    wanted = [(3, 5), *[(3, 3)] * (layers - 2), (2, 3)]
    assert list(layer_shapes(config)) == wanted
    assert [tuple(W.shape) for W in tasks.initial] == [(6, *shape) for shape in wanted]
    assert tuple(tasks.X.shape) == (6, 5, 4)
    assert tuple(tasks.Y.shape) == (6, 2, 4)
    assert tuple(tasks.outputs(tasks.initial).shape) == (6, 2, 4)


def test_select_keeps_tasks_whole() -> None:
    tasks = _sample(ODD, count=5)
    part = tasks.select(slice(1, 3))
    assert part.size == 2
    assert torch.equal(part.loss(part.initial), tasks.loss(tasks.initial)[1:3])
    assert torch.equal(part.X_pinv, tasks.X_pinv[1:3])
