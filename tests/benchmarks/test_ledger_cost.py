"""The benchmark of a ledger trains what it says, with and without one."""

from __future__ import annotations

import torch

from benchmarks.ledger import FULL, OPTIMIZERS, SMOKE, resnet, rows, table, transformer


def test_it_measures_both_models_with_each_optimizer() -> None:
    found = rows(SMOKE, torch.device("cpu"))
    assert [(row.model, row.optimizer) for row in found] == [
        (model, optimizer) for model in ("ResNet-18", "transformer") for optimizer in OPTIMIZERS
    ]
    for row in found:
        assert row.plain > 0
        assert row.with_ledger > 0
        assert row.charges > 0
    assert len(table(found).splitlines()) == len(found) + 2


def test_the_models_are_of_ordinary_size() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in make(FULL).parameters()) for make in (resnet, transformer)]
    assert sizes[0] == 11_173_962
    assert 3e6 < sizes[1] < 4e6
