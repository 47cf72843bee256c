"""Precision in which the LSTMs' weights are multiplied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import UPDATE_AND_TELEPORT, signed, tiny_config
from torch import Tensor

from metaopt.base.process import World
from metaopt.evaluation.contenders import learned_contenders
from metaopt.meta.build import meta_optimizer
from metaopt.meta.run import Run
from metaopt.meta.trainer import MetaTrainer
from metaopt.rules.learned import affine
from metaopt.rules.learned import precision as affine_products
from metaopt.rules.learned.affine import one_window
from metaopt.rules.learned.lstm import LSTM
from metaopt.rules.learned.precision import (
    TF32,
    BFloat16,
    Full,
    Precision,
    multiplies_bfloat16,
    note,
)

ROUNDING = 2.0**-8
EVERY = [Full(), TF32(), BFloat16()]
every_precision = pytest.mark.parametrize("precision", EVERY, ids=lambda p: type(p).__name__)


@every_precision
@pytest.mark.parametrize("blocks", [(), (3,)], ids=["one", "batch"])
def test_each_product_is_the_plain_one_up_to_its_rounding(
    precision: Precision, blocks: tuple[int, ...]
) -> None:
    W, x = (
        signed(*blocks, *s, seed=i, dtype=torch.float32) for i, s in enumerate([(4, 7), (7, 5)])
    )
    z, dz = (signed(*blocks, 4, 5, seed=i, dtype=torch.float32) for i in (2, 3))
    out = torch.empty_like(z)
    tolerance = 0.05 if isinstance(precision, BFloat16) else 1e-5

    def check(found: Tensor, wanted: Tensor) -> None:
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)

    W_, x_ = precision.operand(W), precision.operand(x)
    assert W_.dtype == precision.dtype(W)
    check(precision.plus(z, W_, x_, out), z + W @ x)
    check(precision.times(W_, x_, out), W @ x)
    check(precision.outer(dz, x_), dz @ x.mT)
    total = W.clone()
    check(precision.add_outer_(total, dz, x_), W + dz @ x.mT)
    assert total.dtype == torch.float32


@every_precision
def test_float64_stays_what_it_is(precision: Precision) -> None:
    W, x = signed(4, 7, seed=0), signed(7, 5, seed=1)
    out = torch.empty(4, 5, dtype=torch.float64)
    close = torch.testing.assert_close
    close(precision.times(W, x, out), W @ x, rtol=0, atol=1e-14)
    close(precision.outer(W, x.mT.contiguous()), W @ x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(3,), (700,), (5, 2)], ids=["lined up", "large", "blocks"])
def test_bfloat16_gradients_are_those_of_float32_up_to_rounding(shape: tuple[int, ...]) -> None:
    *blocks, rows = shape
    net = LSTM(6, 8, seed=0, name="test")
    x = signed(*blocks, 6, rows, seed=0, dtype=torch.float32)

    def gradients(precision: Precision) -> list[Tensor]:
        net.precision = precision
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
def test_the_configuration_reaches_every_map(name: str, kind: type[Precision]) -> None:
    config = tiny_config(UPDATE_AND_TELEPORT, {}).model_copy(update={"precision": name})
    optimizer = meta_optimizer(config)
    found = [m.precision for m in optimizer.modules() if isinstance(m, affine.AffineModule)]
    assert len(found) == 4
    assert all(type(precision) is kind for precision in found)
    assert not MetaTrainer(config, torch.device("cpu")).outer_step().skipped


# Where a device has no such instructions.


@pytest.fixture
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that has none; a product of bfloat16 tensors there would take for ever."""
    matmul = torch.matmul

    def refusing(a: Tensor, b: Tensor, **options: Any) -> Tensor:
        assert a.dtype != torch.bfloat16
        return matmul(a, b, **options)

    monkeypatch.setattr(affine_products, "multiplies_bfloat16", lambda device: False)
    monkeypatch.setattr(torch, "matmul", refusing)


@pytest.mark.usefixtures("without_instructions")
@pytest.mark.parametrize("blocks", [(), (3,)], ids=["one", "batch"])
def test_rounded_factors_are_multiplied_in_float32(blocks: tuple[int, ...]) -> None:
    W, x = (
        signed(*blocks, *s, seed=i, dtype=torch.float32) for i, s in enumerate([(4, 7), (7, 5)])
    )
    z, precision = torch.zeros(*blocks, 4, 5), BFloat16()
    W_, x_ = precision.operand(W), precision.operand(x)
    wanted = (W.bfloat16().double() @ x.bfloat16().double()).float()
    for found in (
        precision.plus(z, W_, x_, torch.empty_like(z)),
        precision.times(W_, x_, torch.empty_like(z)),
        precision.outer(W_, x_.mT),
    ):
        # Nothing is rounded but the factors.
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(precision.add_outer_(z, W_, x_.mT), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("without_instructions")
def test_a_run_an_evaluation_and_a_resumption_say_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(UPDATE_AND_TELEPORT, {}).model_copy(update={"precision": "bfloat16"})
    for resume in (False, True):
        Run(config, tmp_path, torch.device("cpu"), 0.0, World()).execute(resume)
        said = capsys.readouterr().out
        assert said.count("no bfloat16 instructions") == 1
        assert "precision: bfloat16: cpu" in said
    paths = [tmp_path / "optimizer.safetensors", tmp_path / "last.safetensors"]
    learned_contenders(paths, torch.device("cpu"), True, World())
    said = capsys.readouterr().out
    assert said.count("no bfloat16 instructions") == 1
    assert all(str(path) in said for path in paths)


def test_what_a_choice_does_not_do_is_said() -> None:
    cpu = torch.device("cpu")
    assert note("full", torch.float32, cpu) is None
    tf32 = note("tf32", torch.float32, cpu)
    assert tf32 is not None
    assert "precision: tf32: cpu has no TF32" in tf32
    for name in ("tf32", "bfloat16"):
        line = note(name, torch.float64, cpu)
        assert line is not None
        assert f"precision: {name}: of no effect on float64" in line
    assert (note("bfloat16", torch.float32, cpu) is None) == multiplies_bfloat16(cpu)
