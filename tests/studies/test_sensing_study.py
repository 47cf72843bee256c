"""The study of sensing: its ScaledGD, how steps are counted, and the command in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from running import figures_in_small

from metaopt.tasks.base import Observation
from studies import sensing
from studies.sensing import HAND_MADE, LEARNED, SCALED_GD, SETTINGS, TARGETS, reached


def test_scaled_gradient_descent_takes_the_same_step_in_every_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From (F A, B F^-1), with gradients F^-T G_A and G_B F^T, the products B A agree exactly."""
    monkeypatch.setattr(sensing, "DAMPING", 0.0)
    drawn = torch.Generator().manual_seed(0)
    A, B, G_A, G_B, F = (
        torch.randn(2, *shape, generator=drawn, dtype=torch.float64)
        for shape in ((3, 7), (5, 3), (3, 7), (5, 3), (3, 3))
    )
    rule, inverse = HAND_MADE[SCALED_GD](0.1), torch.linalg.inv(F)
    products = []
    for weights, grads in (
        ((A, B), (G_A, G_B)),
        ((F @ A, B @ inverse), (inverse.mT @ G_A, G_B @ F.mT)),
    ):
        updates = rule.propose(Observation(weights, grads, (), None), {})[0].updates
        assert updates is not None
        (a, b), (f_A, f_B) = weights, updates
        products.append((b + f_B) @ (a + f_A))
    torch.testing.assert_close(products[0], products[1], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(products[0], B @ A)


def test_reached_is_the_first_step_at_or_below_the_share() -> None:
    losses = np.array([[8.0, 8.0, 8.0], [4.0, 9.0, 8.0], [5.0, 4.0, 7.9]])
    assert reached(losses, 0.5).tolist() == [1, 2, 3]
    assert reached(losses, 1.0).tolist() == [0, 0, 0]


def test_the_command_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of every setting is there, with a step for each target and task."""
    settings = figures_in_small(monkeypatch, tmp_path, sensing.main, "--jobs", "1")["settings"]
    assert set(settings) == set(SETTINGS)
    for setting, rows in settings.items():
        assert set(rows) == {*LEARNED, *HAND_MADE}, setting
        for name, row in rows.items():
            steps = np.array(row["steps"])
            assert steps.shape == (len(TARGETS), sensing.SMOKE.tasks), (setting, name)
            assert (np.diff(steps, axis=0) >= 0).all(), "a lower target is reached no earlier"
