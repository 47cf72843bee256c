"""The benchmark of teleports of adapters steps all three optimizers."""

from __future__ import annotations

import torch

from benchmarks.pairs import SMOKE, measured


def test_it_measures_three_optimizers() -> None:
    found = measured(SMOKE, 2, "lora_update_tele", torch.device("cpu"))
    assert found.pairs == 4
    assert found.rank == 2
    assert min(found.adamw, found.updates, found.pair) > 0
