"""Precision of the products of the LSTMs' weights."""

from __future__ import annotations

import pytest
import torch
from support import UPDATE_AND_TELEPORT, signed, tiny_config
from torch import Tensor

from metaopt import build
from metaopt.meta_train import MetaTrainer
from metaopt.rules import LSTM, affine
from metaopt.rules.affine import one_window
from metaopt.rules.products import TF32, BFloat16, Full, Products

ROUNDING = 2.0**-8
EVERY = [Full(), TF32(), BFloat16()]
every_precision = pytest.mark.parametrize("products", EVERY, ids=lambda p: type(p).__name__)


@every_precision
@pytest.mark.parametrize("blocks", [(), (3,)], ids=["one", "batch"])
def test_each_product_is_the_plain_one_up_to_its_rounding(
    products: Products, blocks: tuple[int, ...]
) -> None:
    W, x = (
        signed(*blocks, *s, seed=i, dtype=torch.float32) for i, s in enumerate([(4, 7), (7, 5)])
    )
    z, dz = (signed(*blocks, 4, 5, seed=i, dtype=torch.float32) for i in (2, 3))
    out = torch.empty_like(z)
    tolerance = 0.05 if isinstance(products, BFloat16) else 1e-5

    def check(found: Tensor, wanted: Tensor) -> None:
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)

    W_, x_ = products.operand(W), products.operand(x)
    assert W_.dtype == products.dtype(W)
    check(products.plus(z, W_, x_, out), z + W @ x)
    check(products.times(W_, x_, out), W @ x)
    check(products.outer(dz, x_), dz @ x.mT)
    total = W.clone()
    check(products.add_outer_(total, dz, x_), W + dz @ x.mT)
    assert total.dtype == torch.float32


@every_precision
def test_float64_stays_what_it_is(products: Products) -> None:
    W, x = signed(4, 7, seed=0), signed(7, 5, seed=1)
    out = torch.empty(4, 5, dtype=torch.float64)
    close = torch.testing.assert_close
    close(products.times(W, x, out), W @ x, rtol=0, atol=1e-14)
    close(products.outer(W, x.mT.contiguous()), W @ x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(3,), (700,), (5, 2)], ids=["lined up", "large", "blocks"])
def test_bfloat16_gradients_are_those_of_float32_up_to_rounding(shape: tuple[int, ...]) -> None:
    *blocks, rows = shape
    net = LSTM(6, 8, seed=0, name="test")
    x = signed(*blocks, 6, rows, seed=0, dtype=torch.float32)

    def gradients(products: Products) -> list[Tensor]:
        net.products = products
        state, total = net.initial_state(*shape), torch.zeros(())
        with one_window():
            for _ in range(4):
                h, state = net(x, state)
                total = total + h.square().sum()
        return list(torch.autograd.grad(total, list(net.parameters())))

    for found, wanted in zip(gradients(BFloat16()), gradients(Full()), strict=True):
        assert found.dtype == torch.float32
        assert float((found - wanted).norm() / wanted.norm()) < 8 * ROUNDING
        assert not torch.equal(found, wanted)


@pytest.mark.parametrize(("name", "kind"), [("full", Full), ("tf32", TF32), ("bfloat16", BFloat16)])
def test_the_configuration_reaches_every_map(name: str, kind: type[Products]) -> None:
    config = tiny_config(UPDATE_AND_TELEPORT, {}).model_copy(update={"products": name})
    optimizer = build.meta_optimizer(config)
    found = [m.products for m in optimizer.modules() if isinstance(m, affine.AffineModule)]
    assert len(found) == 4
    assert all(type(products) is kind for products in found)
    assert not MetaTrainer(config, torch.device("cpu")).outer_step().skipped
