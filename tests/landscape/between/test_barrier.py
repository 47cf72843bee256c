"""The loss on the chord: exact values, and what alignment leaves of it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from alignments import ResNet, cnn, mlp, noisy, planted
from support import signed
from torch import Tensor, nn

from metaopt.landscape.between.align import By
from metaopt.landscape.between.barrier import barrier
from metaopt.landscape.between.refresh import refresh_batchnorm

CROSS, MSE = nn.functional.cross_entropy, nn.functional.mse_loss


class Ring(nn.Module):
    """Outputs x^2 + y^2 - 1, whose square is the ring's loss."""

    def __init__(self, x: float, y: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([x, y], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w.square().sum() - 1).expand(len(x))


def test_the_chord_of_the_ring_has_barrier_one() -> None:
    data = (torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64))
    found = barrier(Ring(-1, 0), Ring(1, 0), MSE, data)
    assert found.value == pytest.approx(1, rel=1e-12)
    assert found.at == 0.5
    assert len(found.losses) == 25
    assert found.losses[0] == found.losses[-1] == 0
    assert found.errors is None
    expected = [((2 * t - 1) ** 2 - 1) ** 2 for t in found.points]
    assert found.losses == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "by"), [("mlp", "orbit"), ("cnn", "weights"), ("resnet", "activations")]
)
def test_no_barrier_is_left_where_moves_are_planted(name: str, by: By) -> None:
    torch.manual_seed(0)
    model, x = {
        "mlp": (mlp(nn.ReLU), signed(20, 6, seed=2)),
        "cnn": (cnn(), signed(768, 1, seed=1).reshape(12, 1, 8, 8)),
        "resnet": (ResNet(), signed(768, 1, seed=1).reshape(12, 1, 8, 8)),
    }[name]
    a = noisy(model)
    b, found = planted(a, x)
    data = (x, torch.arange(len(x)) % 3)
    aligned = barrier(a, b, CROSS, data, 5, by, symmetries=found)
    assert aligned.value < 1e-10
    assert aligned.losses == pytest.approx([aligned.losses[0]] * 5, rel=1e-9)
    assert aligned.alignment is not None
    assert aligned.alignment.after < 1e-11 * aligned.alignment.before
    assert aligned.error_value == pytest.approx(0, abs=1e-12)


def test_ends_have_fresh_statistics_and_models_stay() -> None:
    torch.manual_seed(0)
    x = signed(768, 1, seed=1).reshape(12, 1, 8, 8)
    data = (x, torch.arange(12) % 3)
    a, b = noisy(ResNet(), 1).train(), noisy(ResNet(), 2).train()
    kept = [{p: v.clone() for p, v in m.state_dict().items()} for m in (a, b)]
    found = barrier(a, b, CROSS, data, points=3)
    for model, before in zip((a, b), kept, strict=True):
        assert model.training
        assert all(torch.equal(v, before[p]) for p, v in model.state_dict().items())
    refresh_batchnorm(a, data)
    with torch.no_grad():
        assert found.losses[0] == pytest.approx(float(CROSS(a.eval()(x), data[1])), rel=1e-12)


def test_dropout_is_off() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3)).double()
    data = (signed(9, 4, seed=1), torch.arange(9) % 3)
    other = noisy(deepcopy(model)).train()
    one, two = (barrier(model, other, CROSS, data, points=3) for _ in range(2))
    assert one == two
    b, _ = planted(model.eval(), data[0])
    assert barrier(model, b, CROSS, data, 3, "weights").value < 1e-12


def test_errors_are_shares_of_wrong_classes() -> None:
    torch.manual_seed(0)
    a = noisy(mlp(nn.ReLU))
    x = signed(20, 6, seed=2)
    with torch.no_grad():
        labels = a(x).argmax(1)
    labels[:5] = (labels[:5] + 1) % 3
    found = barrier(a, a, CROSS, (x, labels), points=3)
    assert found.errors == (0.25, 0.25, 0.25)
    assert found.value == pytest.approx(0, abs=1e-12)


def test_mistakes_of_barrier_are_named() -> None:
    a = mlp(nn.ReLU).double()
    data = (signed(4, 6, seed=1), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="points must be at least 3, found 2"):
        barrier(a, a, CROSS, data, points=2)
    with pytest.raises(ValueError, match="without align nothing takes seed"):
        barrier(a, a, CROSS, data, seed=1)
    with pytest.raises(ValueError, match="must have one structure"):
        barrier(a, mlp(nn.ReLU, (6, 7, 5, 3)).double(), CROSS, data)
