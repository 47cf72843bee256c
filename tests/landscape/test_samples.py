"""Batches, mean gradients and per-sample gradients of a model, a loss and data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from metaopt.landscape.samples import Samples


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)).double()


def _data(n: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (n,), generator=generator)


def _paths(model: nn.Module) -> list[str]:
    return [path for path, _ in model.named_parameters()]


def _one_by_one(model: nn.Module, loss: Any, x: Any, y: Tensor) -> dict[str, Tensor]:
    """Gradients of one sample after the other, by ``backward``."""
    found: dict[str, list[Tensor]] = {path: [] for path in _paths(model)}
    for n in range(len(y)):
        model.zero_grad()
        loss(model(x[n : n + 1]), y[n : n + 1]).backward()
        for path, parameter in model.named_parameters():
            assert parameter.grad is not None
            found[path].append(parameter.grad.clone())
    model.zero_grad()
    return {path: torch.stack(gradients) for path, gradients in found.items()}


def _all(samples: Samples, paths: list[str], most: int | None = None) -> dict[str, Tensor]:
    chunks = list(samples.per_sample(paths, most))
    return {path: torch.cat([chunk[path] for chunk in chunks]) for path in paths}


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class _Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu().mean((2, 3)))


class _Branching(nn.Module):
    """Control flow that depends on the data, which vmap cannot run."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        return torch.stack([row * 2 if bool(row.sum() > 0) else row for row in y])


@pytest.mark.parametrize("most", [None, 1, 3])
@pytest.mark.parametrize("batch", [10, 4, 1])
def test_per_sample_gradients_are_those_of_backward(most: int | None, batch: int) -> None:
    model, (x, y) = _mlp(), _data()
    wanted = _one_by_one(model, cross_entropy, x, y)
    data = DataLoader(TensorDataset(x, y), batch_size=batch)
    samples = Samples(model, cross_entropy, data)
    assert samples.count == 10
    found = _all(samples, _paths(model), most)
    mean = samples.mean_gradient(_paths(model))
    for path, gradients in wanted.items():
        torch.testing.assert_close(found[path], gradients, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(mean[path], gradients.mean(0), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", [_Attention, _Convolution, _Branching])
@pytest.mark.parametrize("training", [False, True])
def test_architectures(kind: type[nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    model = kind().double()
    model.train(training and kind is not _Convolution)
    shape = {_Attention: (3, 4), _Convolution: (1, 6, 6), _Branching: (3,)}[kind]
    x, y = torch.randn(6, *shape, dtype=torch.float64), torch.randint(4, (6,))
    wanted = _one_by_one(model, cross_entropy, x, y)
    found = _all(Samples(model, cross_entropy, (x, y)), _paths(model))
    for path, gradients in wanted.items():
        torch.testing.assert_close(found[path], gradients, rtol=1e-11, atol=1e-14)


def test_some_parameters_are_enough_and_frozen_ones_have_gradients() -> None:
    model, (x, y) = _mlp(), _data()
    wanted = _one_by_one(model, cross_entropy, x, y)
    model.requires_grad_(False)
    with torch.no_grad():
        samples = Samples(model, cross_entropy, (x, y))
        found = _all(samples, ["0.bias"])
        mean = samples.mean_gradient(["0.bias"])
    assert list(found) == list(mean) == ["0.bias"]
    torch.testing.assert_close(found["0.bias"], wanted["0.bias"])
    torch.testing.assert_close(mean["0.bias"], wanted["0.bias"].mean(0))


def test_the_model_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = _Convolution().double()
    x, y = torch.randn(6, 1, 6, 6, dtype=torch.float64), torch.randint(4, (6,))
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    Samples(model, cross_entropy, (x, y)).mean_gradient(_paths(model))
    list(Samples(model.eval(), cross_entropy, (x, y)).per_sample(_paths(model)))
    for path, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[path])
    assert all(parameter.grad is None for parameter in model.parameters())


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _mlp()

    def forward(self, first: Tensor, second: Tensor, factor: float = 1.0) -> Tensor:
        y: Tensor = self.inner(first + factor * second)
        return y


@pytest.mark.parametrize("form", ["tuple", "mapping", "list of tuples"])
def test_inputs_are_a_tensor_a_tuple_or_a_mapping(form: str) -> None:
    model, (x, y) = _Two(), _data()
    wanted = _one_by_one(model.inner, cross_entropy, 3 * x, y)
    data: Any = {
        "tuple": ((x, x, 2.0), y),
        "mapping": ({"first": x, "second": x, "factor": 2.0}, y),
        "list of tuples": [((x[:3], x[:3], 2.0), y[:3]), ((x[3:], x[3:], 2.0), y[3:])],
    }[form]
    found = _all(Samples(model, cross_entropy, data), _paths(model))
    for path, gradients in wanted.items():
        torch.testing.assert_close(found[f"inner.{path}"], gradients)


def test_tied_weights_have_one_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    wanted = _one_by_one(model, mse_loss, x, y)
    found = _all(Samples(model, mse_loss, (x, y)), _paths(model))
    for path, gradients in wanted.items():
        torch.testing.assert_close(found[path], gradients)


def test_batch_normalisation_in_training_is_refused() -> None:
    model = _Convolution().double()
    x, y = torch.randn(6, 1, 6, 6, dtype=torch.float64), torch.randint(4, (6,))
    with pytest.raises(ValueError, match=r"'norm' normalises over the samples.*model.eval\(\)"):
        next(Samples(model, cross_entropy, (x, y)).per_sample(["last.weight"]))


class _Changed(nn.Module):
    """An MLP whose outputs are changed by a function that mixes samples, or draws."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.inner, self.mixes = _mlp(), mixes

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y - y.mean(0) if self.mixes else dropout(y, 0.5)


@pytest.mark.parametrize("mixes", [True, False])
def test_what_mixes_samples_or_draws_is_refused(mixes: bool) -> None:
    model = _Changed(mixes)
    with pytest.raises(ValueError, match=r"mixes samples or draws random numbers"):
        next(Samples(model, cross_entropy, _data()).per_sample(_paths(model)))


def test_dropout_in_training_is_refused_and_in_evaluation_not() -> None:
    model = nn.Sequential(_mlp(), nn.Dropout(0.5))
    samples = Samples(model, cross_entropy, _data())
    with pytest.raises(ValueError, match=r"'1' is dropout in training.*model.eval\(\)"):
        next(samples.per_sample(["0.0.weight"]))
    model.eval()
    next(samples.per_sample(["0.0.weight"]))


def test_a_loss_that_is_a_sum_is_refused() -> None:
    def total(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets, reduction="sum")

    with pytest.raises(ValueError, match="no mean over the samples"):
        next(Samples(_mlp(), total, _data()).per_sample(["0.weight"]))


def _once() -> Iterator[tuple[Tensor, Tensor]]:
    yield _data()


X, Y = _data()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, "data must be a pair .*, found Tensor"),
        (7, "data must be a pair .*, found int"),
        (_once(), "run through twice, found generator"),
        ([X, X, Y], "of such pairs of tensors, found Tensor in it"),
        ((X, 3), "found Tensor in it"),
        ((X[:5], Y), r"inputs must have 10 samples.*found shape \[5, 3\]"),
        ((3.0, Y), "inputs must hold tensors, found float"),
        ([], "data hold no samples"),
        ((X[:0], Y[:0]), "data hold no samples"),
    ],
)
def test_other_data_are_refused_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Samples(_mlp(), cross_entropy, data)
    assert "\n" not in str(caught.value)


def test_a_parameter_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"the model has no parameter '9\.weight'"):
        Samples(_mlp(), cross_entropy, _data()).mean_gradient(["9.weight"])
