"""Folders of ``metaopt.fge`` that hold something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metaopt

DATA = (torch.linspace(-1, 1, 24).reshape(8, 3), torch.arange(8) % 2)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    def run(model: nn.Module, kind: Any, folder: Path) -> None:
        optimizer = kind(model.parameters(), lr=0.1)
        metaopt.fge(model, optimizer, DATA, 2, (0.1, 0.01), cycles=1, folder=folder)

    ends = [nn.Linear(3, 2), nn.Linear(3, 2)]
    loss = nn.functional.cross_entropy
    metaopt.connect(ends, loss=loss, data=DATA, steps=2, folder=tmp_path / "curve")
    run(nn.Linear(3, 2), torch.optim.SGD, tmp_path / "fge")
    for model, kind, folder, message in (
        (nn.Linear(3, 2), torch.optim.SGD, "curve", "state of no run of fge"),
        (nn.Linear(3, 2), torch.optim.Adam, "fge", "optimizer 'SGD', found 'Adam'"),
        (nn.Linear(3, 2, bias=False), torch.optim.SGD, "fge", "has a tensor 'bias', which the"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, kind, tmp_path / folder)
