"""The benchmark of connect trains each model both ways."""

from __future__ import annotations

import torch

from benchmarks.connecting import SMOKE, rows, table


def test_it_measures_each_model_with_each_kind_of_curve() -> None:
    found = rows(SMOKE, torch.device("cpu"))
    models = ("MLP", "ResNet-18, narrow", "transformer")
    assert [(row.model, row.kind) for row in found] == [
        (model, kind) for model in models for kind in ("bezier", "chain")
    ]
    for row in found:
        assert row.plain > 0
        assert row.connected > 0
        assert row.ratio > 0
    assert len(table(found).splitlines()) == len(found) + 2
