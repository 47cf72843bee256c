"""Accelerate around a learned optimizer: accumulation, saved states, mixed precision, teleports."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from extras import D, batches, equal, loss, needed, net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metaopt

accelerate = needed("accelerate")
state = needed("accelerate.state")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Accelerate knows one configuration in a process."""
    state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    state.AcceleratorState._reset_state(reset_partial_state=True)


def prepared(**options: Any) -> tuple[Any, nn.Module, Any, Any, Any]:
    accelerator = accelerate.Accelerator(cpu=True, **options)
    model = net()
    optimizer = metaopt.LearnedOptimizer(model, D)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    return accelerator, *accelerator.prepare(model, optimizer, scheduler, loader)


def train(parts: tuple[Any, nn.Module, Any, Any, Any]) -> None:
    """Over the data once."""
    accelerator, model, optimizer, scheduler, loader = parts
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, x, y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


@pytest.mark.filterwarnings("error:updates only:UserWarning")
def test_training_goes_on_from_a_saved_state_bit_for_bit(tmp_path: Path) -> None:
    parts = prepared(gradient_accumulation_steps=2)
    accelerator, model = parts[:2]
    before = copy.deepcopy(model)
    train(parts)
    assert not equal(before, model)
    accelerator.save_state(tmp_path)
    train(parts)
    ended = copy.deepcopy(model)
    train(parts)
    assert not equal(ended, model)
    accelerator.load_state(tmp_path)
    train(parts)
    assert equal(ended, model)
    state.AcceleratorState._reset_state(reset_partial_state=True)
    others = prepared(gradient_accumulation_steps=2)
    others[0].load_state(tmp_path)
    train(others)
    assert equal(ended, others[1])


def test_a_step_is_taken_when_gradients_are_whole() -> None:
    parts = prepared(gradient_accumulation_steps=2)
    train(parts)
    plain = net()
    optimizer = metaopt.LearnedOptimizer(plain, D)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for i, (x, y) in enumerate(batches()):
        (loss(plain, x, y) / 2).backward()
        if i % 2:
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    for a, b in zip(plain.parameters(), parts[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16() -> None:
    parts = prepared(mixed_precision="bf16")
    x, y = batches()[0]
    before = loss(parts[1], x, y).item()
    for _ in range(3):
        train(parts)
    assert loss(parts[1], x, y).item() < 0.9 * before


@pytest.mark.parametrize("kind", ["learned", "adam"])
def test_the_state_moves_with_the_weights(kind: str) -> None:
    found = []
    for is_wrapped in (True, False):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True)
        model = net()
        inner: torch.optim.Optimizer = torch.optim.Adam(model.parameters())
        if kind == "learned":
            inner = metaopt.LearnedOptimizer(model, D)
        wrapped = accelerator.prepare(inner)
        loss(model, *batches()[0]).backward()
        wrapped.step()
        outputs = model(batches()[1][0])
        metaopt.teleport(model, optimizer=wrapped if is_wrapped else inner)
        torch.testing.assert_close(model(batches()[1][0]), outputs)
        found.append([dict(inner.state[p]) for p in model.parameters()])
    # What a teleporter knows belongs to all parameters together, and all of it is forgotten.
    assert any(found[0]) == (kind == "adam")
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
