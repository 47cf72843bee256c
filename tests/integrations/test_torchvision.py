"""Models of torchvision, with random weights: a few steps, and teleports that keep the outputs."""

from __future__ import annotations

import pytest
import torch
from extras import D, needed
from torch import nn
from torch.nn import functional

import metaopt

models = needed("torchvision").models
SIDE = 32
every_model = pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_16"]
)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "vit_b_16":
        return models.VisionTransformer(SIDE, 8, 2, 2, 16, 32, num_classes=4)
    return models.get_model(name, num_classes=4)


@pytest.mark.slow
@every_model
def test_steps_are_finite_and_help(name: str) -> None:
    model = made(name)
    optimizer = metaopt.LearnedOptimizer(model, D)
    torch.manual_seed(1)
    x, labels = torch.randn(8, 3, SIDE, SIDE), torch.arange(8) % 4
    losses = []
    for _ in range(4 if name == "resnet18" else 10):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert losses[-1] < losses[0]


@pytest.mark.slow
@every_model
def test_teleports_keep_the_outputs(name: str) -> None:
    model = made(name).double().eval()
    x = torch.randn(4, 3, SIDE, SIDE, dtype=torch.float64)
    before, weights = model(x), [p.detach().clone() for p in model.parameters()]
    found = metaopt.symmetries(model, example=x)
    assert len(found)
    optimizer = torch.optim.Adam(model.parameters())
    metaopt.teleport(model, symmetries=found, optimizer=optimizer)
    assert any(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
