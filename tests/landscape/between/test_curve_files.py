"""Files of curves: what comes back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from rings import NOTHING, convolutional, images, places, ring
from torch import nn

from metaopt import Curve, connect
from metaopt.landscape.between import curve_files

CROSS = nn.functional.cross_entropy


def curve_of(*models: nn.Module, **settings: object) -> Curve:
    arguments: dict = {"loss": CROSS, "data": images(), "steps": 3, "weight_decay": 0.1}
    return connect(models, **(arguments | settings))


def test_a_curve_comes_back_bit_for_bit(tmp_path: Path) -> None:
    curve = curve_of(convolutional(0), convolutional(1), convolutional(2))
    path = tmp_path / "curve.safetensors"
    curve.save(path)
    found = Curve.load(path, convolutional(3), CROSS)
    assert (found.layout, found.weight_decay) == (curve.layout, 0.1)
    for t in (0.0, 0.3, 0.5, 1.0):
        for one, other in ((curve.weights, found.weights), (curve.buffers, found.buffers)):
            assert list(one(t)) == list(other(t))
            assert all(torch.equal(value, other(t)[name]) for name, value in one(t).items())
    data = images(12)
    assert found.evaluate(data, 3).rows() == curve.evaluate(data, 3).rows()


class Mixed(nn.Module):
    """Half precision, a frozen base that all share, and whole numbers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Parameter(torch.ones(3), requires_grad=False)
        self.low = nn.Parameter(torch.randn(4, 3).bfloat16())
        self.wide = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(seed))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.low.float()) * self.base + self.wide


def test_dtypes_and_constants_come_back(tmp_path: Path) -> None:
    data = (torch.randn(6, 4), torch.arange(6) % 3)
    curve = connect([Mixed(0), Mixed(1)], loss=CROSS, data=data, steps=3)
    assert list(curve.points.constants) == ["base"]
    curve.save(tmp_path / "curve")
    found = Curve.load(tmp_path / "curve", Mixed(2))
    for name, value in curve.weights(0.4).items():
        assert found.weights(0.4)[name].dtype == value.dtype == getattr(Mixed(0), name).dtype
        assert torch.equal(found.weights(0.4)[name], value)
    assert found.model(1.0).count == 1


def test_the_loss_is_not_in_the_file(tmp_path: Path) -> None:
    curve = connect(places((0, 0), (1, 1)), bends=0, loss=ring, data=NOTHING)
    curve.save(tmp_path / "curve")
    found = Curve.load(tmp_path / "curve", places((5, 5))[0])
    with pytest.raises(ValueError, match="the curve knows no loss"):
        found.evaluate(NOTHING)
    assert found.evaluate(NOTHING, loss=ring).length == pytest.approx(2**0.5)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "curve"
    curve_of(convolutional(0), convolutional(1)).save(path)
    other = convolutional(0)
    other[5] = nn.Linear(64, 4)
    with pytest.raises(ValueError, match=r"parameter '5.weight' is float32 \[4, 64\]"):
        Curve.load(path, other)
    with pytest.raises(ValueError, match=r"the model has no parameter '0.weight'"):
        Curve.load(path, nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"parameter '0.weight' is float64"):
        Curve.load(path, convolutional(0).double())


def test_what_is_no_curve_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "file", places((0, 0))[0]
    with pytest.raises(ValueError, match="no such file"):
        Curve.load(path, model)
    safetensors.torch.save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"expected a file that Curve.save wrote"):
        Curve.load(path, model)
    connect(places((0, 0), (1, 1)), bends=0, loss=ring, data=NOTHING).save(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Curve.load(path, model)


def test_a_file_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curve"
    curve = connect(places((0, 0), (1, 1)), bends=0, loss=ring, data=NOTHING)
    curve.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(curve_files, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        curve.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
