"""Stacks of sharpness against J^T H J, written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.functional import cross_entropy, mse_loss

from metaopt import symmetries
from metaopt.landscape import gauss_newton
from metaopt.landscape.gauss_newton import sharpness_stack
from metaopt.landscape.samples import Loss, Samples


class _Branching(nn.Sequential):
    """Control flow that depends on the data, which vmap cannot run."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.stack([y * 2 if bool(y.sum() > 0) else y for y in super().forward(input)])


def _relu(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    return kind(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()


def _branching() -> nn.Sequential:
    return _relu(_Branching)


def _linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)).double()


def _data(count: int, loss: Loss) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3, dtype=torch.float64)
    return x, torch.randint(3, (count,)) if loss is cross_entropy else torch.randn_like(x)


def _truth(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The diagonal blocks of 1/N sum_n J_n^T H_n J_n, {path: [numel, numel]}."""
    values = {path: parameter.detach() for path, parameter in model.named_parameters()}
    blocks = {path: 0 * value.flatten().outer(value.flatten()) for path, value in values.items()}
    for n in range(len(x)):
        outputs = model(x[n : n + 1]).detach()
        H = hessian(lambda f, n=n: loss(f, y[n : n + 1]))(outputs)
        H = H.reshape(outputs.numel(), outputs.numel())
        J = jacrev(lambda given, n=n: functional_call(model, given, (x[n : n + 1],)))(values)
        for path, part in J.items():
            matrix = part.reshape(outputs.numel(), -1)
            blocks[path] += matrix.mT @ H @ matrix / len(x)
    return blocks


@pytest.mark.parametrize("count", [2, 12])
@pytest.mark.parametrize("loss", [mse_loss, cross_entropy])
@pytest.mark.parametrize("make", [_relu, _branching])
def test_squares_are_the_diagonal_of_the_gauss_newton_matrix(
    make: Callable[[], nn.Module], loss: Loss, count: int
) -> None:
    torch.manual_seed(0)
    model, (x, y) = make(), _data(count, loss)
    stack = sharpness_stack(Samples(model, loss, (x, y)), symmetries(_relu()))
    assert len(stack) == 3
    truth = _truth(model, loss, x, y)
    for path, rows in stack.items():
        diagonal = truth[path].diagonal()
        torch.testing.assert_close(rows.square().sum(0).flatten(), diagonal, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("loss", [mse_loss, cross_entropy])
def test_moments_along_the_axis_of_a_matrix_are_those_of_the_gauss_newton_matrix(
    loss: Loss,
) -> None:
    torch.manual_seed(0)
    model, (x, y) = _linear(), _data(12, loss)
    stack = sharpness_stack(Samples(model, loss, (x, y)), symmetries(model))
    truth = _truth(model, loss, x, y)
    found = {
        "0.weight": torch.einsum("rac,rbc->cab", *2 * [stack["0.weight"]]),
        "0.bias": torch.einsum("ra,rb->ab", *2 * [stack["0.bias"]]),
        "1.weight": torch.einsum("rca,rcb->cab", *2 * [stack["1.weight"]]),
    }
    wanted = {
        "0.weight": torch.einsum("acbc->cab", truth["0.weight"].reshape(4, 3, 4, 3)),
        "0.bias": truth["0.bias"],
        "1.weight": torch.einsum("cacb->cab", truth["1.weight"].reshape(3, 4, 3, 4)),
    }
    for path, moments in found.items():
        torch.testing.assert_close(moments, wanted[path], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("make", [_relu, _branching])
def test_with_many_outputs_the_stack_is_unbiased_and_the_seed_decides_it(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    model, data = make(), _data(3, cross_entropy)
    samples, found = Samples(model, cross_entropy, data), symmetries(_relu())
    exact = sharpness_stack(samples, found)
    monkeypatch.setattr(gauss_newton, "EXACT", 2)
    monkeypatch.setattr(gauss_newton, "DRAWS", 2)
    several = [sharpness_stack(samples, found, seed) for seed in range(60)]
    for path, rows in exact.items():
        traces = torch.stack([one[path].square().sum() for one in several])
        error = traces.std() / len(traces) ** 0.5
        assert error < 0.1 * traces.mean()
        assert abs(traces.mean() - rows.square().sum()) < 4 * error + 1e-12
        again = sharpness_stack(samples, found, 7)
        assert torch.equal(again[path], several[7][path])
    assert not torch.equal(several[7]["0.weight"], several[8]["0.weight"])


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused() -> None:
    def hill(outputs: Tensor, targets: Tensor) -> Tensor:
        return -mse_loss(outputs, targets)

    model = _relu()
    with pytest.raises(ValueError, match="convex in the outputs"):
        sharpness_stack(Samples(model, hill, _data(3, hill)), symmetries(model))


class _Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _relu()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), x


def test_other_outputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    several = _Several()
    with pytest.raises(ValueError, match="returns one tensor, found tuple"):
        sharpness_stack(Samples(several, mse_loss, _data(3, mse_loss)), symmetries(several))
    model = _relu()
    monkeypatch.setattr(gauss_newton, "MOST_OUTPUTS", 2)
    with pytest.raises(ValueError, match="at most 2 outputs a sample, found 3"):
        sharpness_stack(Samples(model, mse_loss, _data(3, mse_loss)), symmetries(model))
