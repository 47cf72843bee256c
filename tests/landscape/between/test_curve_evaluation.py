"""What a report says of curves whose loss is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rings import NOTHING, places, ring
from torch import Tensor, nn

from metaopt import Curve, connect
from metaopt.landscape.between.curve_evaluation import wrong_classes


def chord(*points: tuple[float, ...], weight_decay: float = 0.0) -> Curve:
    return connect(places(*points), bends=0, loss=ring, data=NOTHING, weight_decay=weight_decay)


def test_a_straight_curve_is_as_long_as_the_distance() -> None:
    one, other = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    curve = connect([one, other], kind="chain", bends=0, loss=nn.functional.mse_loss, data=NOTHING)
    data = (torch.randn(5, 4).double(), torch.randn(5, 3).double())
    distance = math.hypot(
        float((one.weight - other.weight).detach().norm()),
        float((one.bias - other.bias).detach().norm()),
    )
    assert curve.evaluate(data).length == pytest.approx(distance, rel=1e-12)


def test_summaries_of_the_chord_of_the_ring() -> None:
    report = chord((-1, 0), (1, 0), weight_decay=0.5).evaluate(NOTHING, points=1001)
    found = report.summary()
    assert (found.start, found.end, found.min, found.max) == (0, 0, 0, 1)
    # The mean of (x^2 - 1)^2 over [-1, 1] is 8/15; x moves evenly.
    assert found.mean == pytest.approx(8 / 15, abs=1e-5)
    assert found.integral == pytest.approx(8 / 15, abs=1e-5)
    assert report.length == pytest.approx(2)
    penalty = report.summary("penalty")
    assert (penalty.start, penalty.min) == (0.25, 0)
    assert penalty.mean == pytest.approx(0.25 / 3, abs=1e-5)
    assert report.error.isnan().all()


def test_the_integral_is_over_arc_length_and_the_mean_over_t() -> None:
    # The first half of t is of length 3, the second of length 1.
    report = chord((0, 0), (3, 0), (4, 0)).evaluate(NOTHING, points=2001)
    values = report.loss
    first, second = values[:1001].mean(), values[1000:].mean()
    assert report.summary().mean == pytest.approx(float(first + second) / 2, rel=1e-2)
    assert report.summary().integral == pytest.approx(float(3 * first + second) / 4, rel=1e-2)


def test_barriers_are_between_ends() -> None:
    curve = chord((-1, 0), (1, 0), (1, 1))
    report = curve.evaluate(NOTHING, points=41)
    assert report.barriers.tolist() == [1, 0]
    assert report.barrier == 1
    with pytest.raises(ValueError, match="points must be 1 more than a multiple of 2"):
        curve.evaluate(NOTHING, points=60)


def test_errors_are_shares_of_wrong_classes() -> None:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    data = [(x[:3], torch.tensor([0, 1, 1])), (x[3:], torch.tensor([1]))]
    curve = connect([model, model], bends=0, loss=nn.functional.cross_entropy, data=data)
    report = curve.evaluate(data, points=2)
    assert report.error.tolist() == [0.25, 0.25]
    assert report.length == 0
    assert report.summary().integral == pytest.approx(report.summary().mean)


@pytest.mark.parametrize(
    ("outputs", "targets", "wrong"),
    [
        (torch.eye(3), torch.tensor([0, 1, 0]), 1),
        (torch.eye(3).expand(2, 3, 3), torch.tensor([[0, 1, 2], [0, 0, -100]]), 1),
        (torch.eye(4)[None, :3], torch.tensor([[0, 1, 1]]), 1),
        (torch.zeros(3, 2), torch.zeros(3), None),
        (torch.zeros(3), torch.tensor([0, 1, 0]), None),
        ({"logits": torch.zeros(3, 2)}, torch.tensor([0, 1, 0]), None),
    ],
)
def test_where_classes_are(outputs: Tensor, targets: Tensor, wrong: int | None) -> None:
    found = wrong_classes(outputs, targets)
    assert (None if found is None else int(found.sum())) == wrong


def test_a_report_can_be_printed_and_drawn(tmp_path: Path) -> None:
    one = chord((-1, 0), (1, 0)).evaluate(NOTHING)
    other = chord((-1, 0), (0, 1), (1, 0)).evaluate(NOTHING)
    assert str(one).endswith("barrier 1, length 2")
    assert "error" not in str(one)
    assert len(one.rows()) == 61
    figure = one.plot(tmp_path / "report.png", beside={"around": other})
    assert (tmp_path / "report.png").stat().st_size > 1000
    assert [line.get_label() for line in figure.axes[0].lines] == ["curve", "around"]
    with pytest.raises(ValueError, match="name must be one of loss, error, penalty"):
        one.summary("speed")
