"""Products with the Hessian and the Gauss-Newton matrix, against matrices written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import signed
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from metaopt.landscape.gauss_newton import sharpness_stack
from metaopt.landscape.products import GaussNewtonProducts, HessianProducts, Products
from metaopt.landscape.samples import Loss, Samples
from metaopt.symmetry.discovery.find import symmetries

X, Y = signed(7, 3, seed=1), signed(7, 2, seed=2)
LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0])
MSE, CROSS = nn.functional.mse_loss, nn.functional.cross_entropy
MATRICES = pytest.mark.parametrize("kind", [HessianProducts, GaussNewtonProducts])
LOSSES = pytest.mark.parametrize(("loss", "targets"), [(MSE, Y), (CROSS, LABELS)])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


class Wrapped(nn.Module):
    """The same network with outputs of another shape."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.net, self.kind = net(), kind

    def forward(self, x: Tensor) -> Any:
        out = self.net(x)
        return {"hidden": x, "out": out} if self.kind is dict else (out, len(x), out.mean())


def paths_of(model: nn.Module) -> list[str]:
    return [path for path, _ in model.named_parameters()]


def written_out(products: Products) -> Tensor:
    return products(torch.eye(products.size, dtype=torch.float64))


def explicit(model: nn.Module, loss: Loss, targets: Tensor) -> dict[type[Products], Tensor]:
    """Both matrices by torch.func, over all entries of the parameters."""
    parameters = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters.values()])

    def outputs(row: Tensor) -> Tensor:
        parts = row.split([p.numel() for p in parameters.values()])
        values = {
            path: part.reshape(p.shape)
            for (path, p), part in zip(parameters.items(), parts, strict=True)
        }
        return functional_call(model, values, (X,))

    J = jacrev(outputs)(flat).flatten(0, 1)
    f = outputs(flat)
    L = torch.func.hessian(lambda z: loss(z, targets))(f).reshape(f.numel(), f.numel())
    H = torch.func.hessian(lambda row: loss(outputs(row), targets))(flat)
    return {HessianProducts: H, GaussNewtonProducts: J.mT @ L @ J}


@MATRICES
@LOSSES
def test_products_are_those_of_the_matrix(kind: Any, loss: Loss, targets: Tensor) -> None:
    model = net()
    wanted = explicit(model, loss, targets)[kind]
    found = written_out(kind(Samples(model, loss, (X, targets)), paths_of(model)))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found, found.mT, rtol=1e-11, atol=1e-12)


@MATRICES
def test_unequal_batches_make_the_matrix_of_the_mean_loss(kind: Any) -> None:
    model = net()
    whole = kind(Samples(model, CROSS, (X, LABELS)), paths_of(model))
    parts = [(X[:2], LABELS[:2]), (X[2:], LABELS[2:])]
    in_parts = kind(Samples(model, CROSS, parts), paths_of(model))
    torch.testing.assert_close(written_out(in_parts), written_out(whole))
    torch.testing.assert_close(in_parts.gradient(), whole.gradient())


@MATRICES
def test_rows_one_after_the_other_are_those_at_once(kind: Any) -> None:
    model = net()
    products = kind(Samples(model, CROSS, (X, LABELS)), paths_of(model))
    together = written_out(products)
    products._vectorises = False
    torch.testing.assert_close(written_out(products), together, rtol=1e-12, atol=1e-14)


class Cubed(torch.autograd.Function):
    """x^3, without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * 3 * x**2


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Cubed.apply(self.net(x))
        return found


@MATRICES
def test_functions_of_a_users_own(kind: Any) -> None:
    class Plain(Odd):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) ** 3

    odd, plain = Odd(), Plain()
    found = written_out(kind(Samples(odd, MSE, (X, Y)), paths_of(odd)))
    torch.testing.assert_close(found, explicit(plain, MSE, Y)[kind], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", [tuple, dict])
def test_outputs_may_be_tuples_and_mappings(form: type) -> None:
    model, place = Wrapped(form), "out" if form is dict else 0
    samples = Samples(model, lambda found, y: CROSS(found[place], y), (X, LABELS))
    found = written_out(GaussNewtonProducts(samples, paths_of(model)))
    wanted = explicit(net(), CROSS, LABELS)[GaussNewtonProducts]
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@MATRICES
def test_some_of_the_parameters_and_unused_ones(kind: Any) -> None:
    model = net()
    some = ["2.bias", "0.weight"]
    wanted = explicit(model, CROSS, LABELS)[kind]
    ends = {"2.bias": slice(24, 26), "0.weight": slice(0, 12)}
    places = torch.cat([torch.arange(26)[ends[path]] for path in some])
    model.register_parameter("unused", nn.Parameter(signed(2, seed=5)))
    found = written_out(kind(Samples(model, CROSS, (X, LABELS)), [*some, "unused"]))
    torch.testing.assert_close(found[:14, :14], wanted[places][:, places], rtol=1e-11, atol=1e-12)
    assert not found[14:].any()
    assert not found[:, 14:].any()


@MATRICES
def test_the_model_is_left_alone(kind: Any) -> None:
    model = nn.Sequential(net(), nn.BatchNorm1d(2).double())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    written_out(kind(Samples(model, MSE, (X, Y)), paths_of(model)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


class Opaque:
    def __init__(self, out: Tensor) -> None:
        self.out = out


def test_refusals() -> None:
    class Hidden(Odd):
        def forward(self, x: Tensor) -> Any:
            return Opaque(self.net(x))

    hidden, model = Hidden(), net()
    samples = Samples(hidden, lambda found, y: CROSS(found.out, y), (X, LABELS))
    with pytest.raises(ValueError, match=r"needs outputs that are tensors.*found Opaque"):
        written_out(GaussNewtonProducts(samples, paths_of(hidden)))
    assert written_out(HessianProducts(samples, paths_of(hidden))).any()
    linear = Samples(model, lambda out, y: (out * y).mean(), (X, Y))
    with pytest.raises(ValueError, match="linear in the model's outputs"):
        written_out(GaussNewtonProducts(linear, paths_of(model)))


@LOSSES
def test_the_trace_is_that_of_the_rows_of_sharpness(loss: Loss, targets: Tensor) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    samples = Samples(model, loss, (X, targets))
    rows = sharpness_stack(samples, symmetries(model))
    products = GaussNewtonProducts(samples, list(rows))
    trace = sum(float(stack.square().sum()) for stack in rows.values())
    assert float(written_out(products).trace()) == pytest.approx(trace, rel=1e-10)
