"""What rules keep follows scaled units by the same factors, however these are computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metaopt.rules import base


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[1]))


@pytest.mark.parametrize("degree", [-2, -1, 1])
def test_factors_computed_once_are_those_of_each_entry(
    degree: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = (drawn(2, 3, 1).expand(2, 3, 4), drawn(2, 1, 4).expand(2, 5, 4))
    logs = (*shared, drawn(2, 3, 4), torch.zeros(2, 1, 1).expand(2, 6, 1))
    rows = torch.cat([log.flatten(1) for log in logs], dim=1)[:, None]
    wanted = (degree * rows).exp()
    assert torch.equal(base._powers(logs, degree), wanted)
    monkeypatch.setattr(base, "MANY", 0)
    with torch.no_grad():
        assert torch.equal(base._powers(logs, degree), wanted)
