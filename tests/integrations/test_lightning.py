"""Lightning around a learned optimizer: fit, resume, mixed precision, teleports, two processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning_worker
import pytest
import torch
from extras import D, batches, equal, loss, needed
from lightning_worker import Net, fit
from running import TORCHRUN, finish

import metaopt

lightning = needed("lightning")
pytestmark = pytest.mark.slow


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = Net(), Net()
    fit(whole, tmp_path, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    half = Net()
    half.load_state_dict(torch.load(tmp_path / "half.ckpt")["state_dict"])
    assert equal(half, whole)
    whole = Net()
    fit(whole, tmp_path, max_epochs=2)
    fit(resumed, tmp_path, max_epochs=2, checkpoint=tmp_path / "half.ckpt")
    assert not equal(half, whole)
    assert equal(resumed, whole)


def test_training_is_that_of_a_plain_loop_with_closures(tmp_path: Path) -> None:
    found = Net()
    fit(found, tmp_path, max_epochs=1)
    plain = Net()
    optimizer = plain.configure_optimizers()["optimizer"]
    for x, y in batches():

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            value = loss(plain.net, x, y)
            value.backward()
            return value

        optimizer.step(closure)
    assert equal(plain, found)


def test_bfloat16_accumulation_and_clipping(tmp_path: Path) -> None:
    net = Net()
    x, y = batches()[0]
    before = loss(net.net, x, y).item()
    options: dict[str, Any] = {
        "precision": "bf16-mixed",
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0,
    }
    fit(net, tmp_path, max_epochs=6, **options)
    assert loss(net.net, x, y).item() < 0.9 * before


@pytest.mark.parametrize("library", ["lightning", "fabric"])
def test_the_state_moves_with_the_weights(library: str, tmp_path: Path) -> None:
    found = []
    for is_wrapped in (True, False):
        net = Net()
        inner = torch.optim.Adam(net.parameters())
        wrapped: Any
        if library == "fabric":
            fabric = lightning.Fabric(accelerator="cpu", devices=1)
            _, wrapped = fabric.setup(net.net, inner)
        else:
            wrapped = needed("lightning.pytorch.core.optimizer").LightningOptimizer(inner)
        loss(net.net, *batches()[0]).backward()
        inner.step()
        outputs = net.net(batches()[1][0])
        metaopt.teleport(net.net, optimizer=wrapped if is_wrapped else inner)
        torch.testing.assert_close(net.net(batches()[1][0]), outputs)
        found.append([dict(inner.state[p]) for p in net.parameters()])
    assert all(found[0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_replicas_stay_equal_bit_for_bit(tmp_path: Path) -> None:
    done = finish([sys.executable, *TORCHRUN, lightning_worker.__file__, str(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["weights"].keys() == {"model", "wrapper"}
    for kind, weights in first["weights"].items():
        assert all(torch.isfinite(w).all() for w in weights)
        assert all(map(torch.equal, weights, second["weights"][kind]))
    for rank in (first, second):
        (line,) = rank["warned"]["model"]
        assert "the loss is not heard" in line
        assert not any("loss" in line for line in rank["warned"]["wrapper"])
    heard, deaf = first["weights"]["wrapper"], first["weights"]["model"]
    assert not all(map(torch.equal, heard, deaf))
    # The losses heard are those of all rows.
    whole = Net()
    optimizer = metaopt.LearnedOptimizer(whole, D)
    for (x, y), (v, z) in zip(first["seen"], second["seen"], strict=True):
        optimizer.zero_grad()
        value = loss(whole.net, torch.cat([x, v]), torch.cat([y, z]))
        value.backward()
        optimizer.step(value.detach)
    for a, b in zip(whole.parameters(), heard, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
