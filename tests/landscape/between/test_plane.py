"""Planes of curves: coordinates, losses on the grid, pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rings import NOTHING, convolutional, images, places, ring
from torch import nn

from metaopt import Curve, connect

CROSS = nn.functional.cross_entropy


def bent(steps: int = 200) -> Curve:
    return connect(places((-1, 0), (1, 0)), loss=ring, data=NOTHING, steps=steps, lr=0.02)


def test_the_plane_of_two_weights_is_the_plane() -> None:
    curve = bent()
    plane = curve.plane(NOTHING, size=9)
    sign = 1 if curve.control_point(1)["w"][1] > 0 else -1
    # x = 0 is the first end, and y grows towards the bend.
    w = torch.stack(torch.meshgrid(plane.x - 1, sign * plane.y, indexing="xy"), dim=-1)
    expected = (w.square().sum(-1) - 1) ** 2
    torch.testing.assert_close(plane.loss, expected, rtol=1e-9, atol=1e-9)
    assert plane.ends.flatten().tolist() == pytest.approx([0, 0, 2, 0], abs=1e-12)
    points = torch.stack([curve.weights(i / 60)["w"] for i in range(61)])
    drawn = torch.stack([points[:, 0] + 1, sign * points[:, 1]], dim=1)
    torch.testing.assert_close(plane.curves["curve"], drawn)


def test_distances_in_the_plane_are_those_of_weights() -> None:
    models = [convolutional(seed) for seed in range(3)]
    curve = connect(models, kind="chain", bends=0, loss=CROSS, data=images())
    plane = curve.plane(images(12), size=2)
    vectors = [nn.utils.parameters_to_vector(one.parameters()).detach() for one in models]
    found, expected = torch.cdist(plane.ends, plane.ends), torch.zeros(3, 3, dtype=torch.float64)
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors):
            expected[i, j] = (one - other).norm()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_statistics_are_refreshed_at_each_point() -> None:
    data = images()
    curve = connect([convolutional(0), convolutional(1)], loss=CROSS, data=data, steps=3)
    plane = curve.plane(data, size=3, margin=0.0)
    # A corner of the grid without margin is an end.
    end = curve.model(0.0, data)
    assert plane.loss[0, 0] == pytest.approx(float(CROSS(end(data[0]), data[1]).detach()), rel=1e-5)
    assert not plane.error.isnan().any()


def test_a_straight_curve_has_no_plane() -> None:
    chord = connect(places((-1, 0), (1, 0)), bends=0, loss=ring, data=NOTHING)
    with pytest.raises(ValueError, match="lie on one line"):
        chord.plane(NOTHING)
    with pytest.raises(ValueError, match="curve 'other' is of another model"):
        bent(1).plane(
            NOTHING,
            beside={
                "other": connect(
                    [nn.Linear(2, 2), nn.Linear(2, 2)], bends=0, loss=CROSS, data=NOTHING
                )
            },
        )


def test_the_picture_shows_curves_side_by_side(tmp_path: Path) -> None:
    chord = connect(places((-1, 0), (1, 0)), bends=0, loss=ring, data=NOTHING)
    plane = bent().plane(NOTHING, beside={"straight": chord})
    assert plane.loss.shape == (21, 21)
    figure = plane.plot(tmp_path / "plane.png")
    assert (tmp_path / "plane.png").stat().st_size > 5000
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["curve", "straight", "chord"]
    with pytest.raises(ValueError, match="quantity must be loss or error"):
        plane.plot(quantity="speed")
