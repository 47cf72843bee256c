"""Layers of one unit: their unit is scaled like others, and broadcast over others without harm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import metaopt

Forward = Callable[[nn.Module, Tensor], Tensor]


class Around(nn.Module):
    """Wide layers beside a layer of one unit, put together by a function."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.one, self.wide = nn.Linear(4, 1), nn.Linear(4, 5)
        self.out, self.last = nn.Linear(5, 3), nn.Linear(1, 3)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


FORWARDS: dict[str, Callable[..., Tensor]] = {
    "gate": lambda s, x: s.out(torch.sigmoid(s.one(x)) * s.wide(x)),
    "linear gate": lambda s, x: s.out(s.one(x) * torch.relu(s.wide(x))),
    "added to all": lambda s, x: s.out(torch.relu(s.wide(x) + s.one(x))),
    "divided": lambda s, x: s.out(s.wide(x) / (1 + s.one(x).abs())),
    "ratio": lambda s, x: s.out(s.wide(x) / s.one(x)),
    "squeezed": lambda s, x: s.out(s.wide(x) * s.one(x).squeeze(-1)[:, None]),
    "expanded": lambda s, x: s.out(torch.relu(s.one(x).expand(-1, 5))),
    "joined": lambda s, x: s.out(torch.cat([s.one(x), s.wide(x)[:, 1:]], 1).relu()),
    "repeated": lambda s, x: s.out(s.one(x).repeat(1, 5)),
    "softmax of one": lambda s, x: s.last(torch.softmax(s.one(x), -1)),
    "normalised": lambda s, x: s.last(functional.layer_norm(s.one(x), (1,))),
    "outer": lambda s, x: s.out((s.one(x)[:, :, None] @ s.wide(x)[:, None, :])[:, 0]),
    "sum over samples": lambda s, x: s.last(s.one(x) - s.one(x).mean(0, keepdim=True)),
    "both": lambda s, x: s.last(torch.relu(s.one(x))) + s.out(s.wide(x) * s.one(x)),
}


@pytest.mark.parametrize("permutations", [False, True])
@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", FORWARDS)
def test_outputs_stay(name: str, with_example: bool, permutations: bool) -> None:
    torch.manual_seed(0)
    model = Around(FORWARDS[name]).double()
    example = torch.randn(6, 4, dtype=torch.float64) if with_example else None
    found = metaopt.symmetries(model, example, permutations)
    x = torch.randn(9, 4, dtype=torch.float64)
    before = model(x)
    metaopt.teleport(model, symmetries=found)
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)),
        nn.Sequential(nn.Linear(4, 1, bias=False), nn.ReLU(), nn.Linear(1, 3)),
        nn.Sequential(nn.Conv2d(2, 1, 3), nn.LeakyReLU(), nn.Conv2d(1, 3, 1)),
        nn.Sequential(
            nn.Linear(4, 1), nn.LeakyReLU(), nn.Linear(1, 1), nn.PReLU(), nn.Linear(1, 2)
        ),
    ],
    ids=["scalars", "rank one", "one channel", "deep"],
)
def test_the_unit_is_scaled(model: nn.Sequential) -> None:
    found = metaopt.symmetries(model)
    layers = [one for one in model if isinstance(one, nn.Linear | nn.Conv2d)]
    assert [(str(s.group), s.size) for s in found] == [("positive scaling", 1)] * (len(layers) - 1)
    assert found.dimension == len(layers) - 1
